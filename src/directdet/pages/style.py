"""The style sheet of the report: light and dark, desk and phone, no fonts or images from elsewhere."""

CSS = """
:root {
  --paper: #fcfbf8; --ink: #1c1d1f; --muted: #686a70; --line: #e4e1da; --soft: #f3f1ec;
  --first: #0b6e75; --second: #b04e16; --third: #6a5aa8; --good: #1b7a43; --bad: #b3261e; --shade: #1c1d1f55;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e7e5e0; --muted: #9a9ca3; --line: #2d3035; --soft: #1d2024;
    --first: #4fb9bf; --second: #e8905a; --third: #a798e0; --good: #63c48a; --bad: #f0837b; --shade: #e7e5e066;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.15; letter-spacing: -0.02em; font-weight: 650; margin: 0 0 .6rem; }
h2 {
  font-size: 1.2rem; letter-spacing: -0.01em; font-weight: 650; margin: 3.5rem 0 1.2rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1rem; font-weight: 650; margin: 2.2rem 0 .4rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
header p { color: var(--muted); font-size: 1.05rem; }
a { color: var(--first); }
form { margin: 2rem 0; }
button, input { font: inherit; }
button { margin: 0 .6rem .6rem 0; }
.note, figcaption { color: var(--muted); font-size: .88rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.badge {
  display: inline-block; font-size: .75rem; font-weight: 600; letter-spacing: .04em; padding: .05rem .55rem;
  border: 1px solid currentColor; border-radius: 1rem; vertical-align: .1em; margin-right: .3rem;
}
h3 { overflow-wrap: anywhere; }
h3 .badge { color: var(--second); margin-left: .4rem; }
h3 .badge.bad { color: var(--bad); }
h3 .badge:first-child { margin-left: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1px; margin: 2rem 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.figure { background: var(--paper); padding: 1rem 1.1rem 1.05rem; }
.figure dt { color: var(--muted); font-size: .82rem; }
.figure dd { margin: .1rem 0; font-size: 1.75rem; line-height: 1.2; font-weight: 620; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.figure.good dd { color: var(--good); }
.figure.bad dd { color: var(--bad); }
.figure span { display: block; color: var(--muted); font-size: .82rem; line-height: 1.35; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.5rem 2.5rem;
  margin: 1.4rem 0; }
figure { margin: 0; min-width: 0; }
.charts figcaption { margin-top: .35rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
/* A shadow at the edge where a table goes on: the paper, which moves with the table, covers it at the table's end. */
.scroll { overflow-x: auto; margin: 1.4rem 0; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1.1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .9rem .42rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
th:first-child, td:first-child { text-align: left; }
td:first-child { min-width: 9rem; overflow-wrap: anywhere; }
td:not(:first-child) { white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
tbody th { text-align: left; color: var(--ink); font-weight: 600; padding-top: 1.1rem; }
summary { cursor: pointer; font-weight: 600; margin: 1.4rem 0; }
.matrix th, .matrix td { text-align: center; padding: .42rem .5rem; overflow-wrap: normal; }
.matrix td:first-child { min-width: 0; }
.matrix th[scope] { text-align: left; padding-left: 0; }
.matrix .good { color: var(--ink); background: color-mix(in srgb, var(--first) calc(var(--share) * .5), transparent); }
.matrix .wrong { background: color-mix(in srgb, var(--second) calc(var(--share) * .5), transparent); }
.stills { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1.2rem; margin: 1rem 0; }
.stills figure { display: flex; flex-direction: column; justify-content: flex-end; }
.stills img { display: block; max-width: 100%; height: auto; border-radius: .2rem; }
.stills figcaption { margin-top: .3rem; overflow-wrap: anywhere; line-height: 1.35; }
.stills.wide { grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); align-items: start; }
.stills.wide figure { justify-content: flex-start; }
.stills.wide img { width: 100%; }
.note { overflow-wrap: anywhere; }
.lines { font-size: .88rem; padding-left: 1.2rem; margin: .6rem 0; overflow-wrap: anywhere; }
.balance td:not(:first-child) { min-width: 6rem; background:
  linear-gradient(color-mix(in srgb, var(--first) 45%, transparent) 0 0) left 50% / var(--share, 0) 70% no-repeat; }
.bars { margin: 2rem 0 1.6rem; }
.bar { margin-bottom: .9rem; }
.bar span { display: flex; justify-content: space-between; gap: 1rem; font-size: .88rem; }
.bar b { font-weight: 600; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar div { display: flex; height: .7rem; background: var(--soft); border-radius: .2rem; overflow: hidden; }
.bar i { display: block; height: 100%; }
i.prepare { background: var(--second); }
i.device { background: var(--first); }
i.postprocess { background: var(--third); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .4rem 0 0;
  color: var(--muted); font-size: .82rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .4rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.6rem; }
.gallery figure > div { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }
.gallery img { display: block; width: 100%; height: auto; border-radius: .2rem; }
.gallery figcaption { margin-top: .3rem; overflow-wrap: anywhere; }
.about { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.6rem; font-size: .9rem; margin: 0; }
.about dt { color: var(--muted); }
.about dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 2rem 1.1rem 3.5rem; }
  h1 { font-size: 1.65rem; }
  h2 { margin-top: 2.6rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  .figure:last-child:nth-child(odd) { grid-column: span 2; }
  .figure { padding: .8rem .8rem .85rem; }
  .figure dd { font-size: 1.4rem; }
  .about { grid-template-columns: 1fr; gap: 0; }
  .about dd { margin-bottom: .7rem; }
  th, td { padding-right: .7rem; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""
