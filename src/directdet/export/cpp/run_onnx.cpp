// Run an artefact of `directdet export --format onnx` with ONNX Runtime and OpenCV alone.
//
//     run_onnx ARTEFACT PICTURE [SCORE [FOUND.png]]
//
// Prints one JSON line for each detection, and can draw them into a copy of the picture. SCORE is the least to keep;
// without it, what the export found best, which may differ by class, or 0.3.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>
#include <string>
#include <vector>

using nlohmann::json;

// The network's input for one picture, and the canvas's pixels per pixel of the picture.
struct Prepared {
    std::vector<uint8_t> bytes;  // of all rows of the batch, uint8 or float32
    std::vector<int64_t> shape;
    float scale_x, scale_y;
};

// Resize a BGR picture into the top left corner of the canvas; the rest has the mean colour. See meta.json's fields.
Prepared prepare(const cv::Mat& picture, const json& meta) {
    const json& rules = meta["preprocess"];
    const int height = rules["size"][0], width = rules["size"][1];
    int new_height = height, new_width = width;  // SSD ("warp"): fill the canvas, whatever the proportions
    if (!rules.value("warp", false)) {           // else keep the proportions; halves are rounded up
        const double scale = std::min(double(height) / picture.rows, double(width) / picture.cols);
        new_height = std::min(height, std::max(1, int(picture.rows * scale + 0.5)));
        new_width = std::min(width, std::max(1, int(picture.cols * scale + 0.5)));
    }
    const std::vector<double> mean = rules["mean"], std = rules["std"];  // of RGB, on the scale of 0 to 255
    const cv::Scalar padding(int(mean[2] + 0.5), int(mean[1] + 0.5), int(mean[0] + 0.5));
    cv::Mat canvas(height, width, CV_8UC3, padding);
    const cv::Rect place(0, 0, new_width, new_height);
    cv::Mat corner = canvas(place);
    cv::resize(picture, corner, corner.size(), 0, 0, cv::INTER_LINEAR);

    const int64_t rows = meta["shapes"]["batch"]["min"];  // a graph that takes no single picture gets copies beside it
    const size_t pixels = size_t(height) * width;
    Prepared out{{}, {}, float(double(new_width) / picture.cols), float(double(new_height) / picture.rows)};
    std::vector<uint8_t> one;
    if (meta["input"]["dtype"] == "uint8") {  // BGR pixels; the graph normalises them
        one.assign(canvas.data, canvas.data + 3 * pixels);
        out.shape = {rows, height, width, 3};
    } else {  // normalised RGB planes; the padding is zero
        one.resize(3 * pixels * sizeof(float));
        float* values = reinterpret_cast<float*>(one.data());
        std::fill(values, values + 3 * pixels, 0.0f);
        for (int channel = 0; channel < 3; ++channel)
            for (int y = 0; y < new_height; ++y)
                for (int x = 0; x < new_width; ++x) {
                    const double grey = canvas.at<cv::Vec3b>(y, x)[2 - channel];
                    values[channel * pixels + size_t(y) * width + x] = float((grey - mean[channel]) / std[channel]);
                }
        out.shape = {rows, 3, height, width};
    }
    for (int64_t row = 0; row < rows; ++row) out.bytes.insert(out.bytes.end(), one.begin(), one.end());
    return out;
}

struct Detection {
    int label;
    float score;
    float box[4];  // x0, y0, x1, y1 in the picture's pixels
    cv::Mat mask;  // 1 where the object is, uint8; empty where the model has no masks
    int x, y;      // the place of the mask's top left corner in the picture
};

// Along one axis: the first pixel with its centre in the box; for each the first of two cells, and the second's weight.
// Cells are counted with the zero cell that stands before the first one.
struct Taps {
    int first;
    std::vector<int> cell;
    std::vector<float> weight;
};

Taps taps(float low, float high, int limit, int cells) {
    const int first = std::max(0, int(std::ceil(double(low) - 0.5)));
    const int last = std::min(limit, int(std::floor(double(high) - 0.5)) + 1);
    Taps out{first, {}, {}};
    std::vector<float> centres;
    for (int pixel = first; pixel < last; ++pixel) centres.push_back(float(pixel) + 0.5f);
    if (centres.empty()) {  // what the picture shows of it is thinner than a pixel: it takes the one that it lies in
        const float start = std::max(low, 0.0f);
        out.first = int(std::floor(start));
        centres.push_back((start + std::min(high, float(limit))) / 2);
    }
    for (const float centre : centres) {
        const float place = (centre - low) * float(double(cells) / (double(high) - low)) + 0.5f;
        const int cell = std::clamp(int(std::floor(place)), 0, cells);
        out.cell.push_back(cell);
        out.weight.push_back(place - float(cell));
    }
    return out;
}

// Where the probabilities (side x side, spread over the box as it was predicted) reach 0.5 at the pixels' centres.
void paste(const float* mask, int side, const float* predicted, const cv::Size& size, Detection& found) {
    const Taps across = taps(predicted[0], predicted[2], size.width, side);
    const Taps down = taps(predicted[1], predicted[3], size.height, side);
    const auto value = [&](int row, int column) {  // beyond the outermost cells' centres it falls to zero
        const bool inside = row >= 1 && row <= side && column >= 1 && column <= side;
        return inside ? mask[(row - 1) * side + column - 1] : 0.0f;
    };
    found.x = across.first;
    found.y = down.first;
    found.mask = cv::Mat(int(down.cell.size()), int(across.cell.size()), CV_8U);
    for (int y = 0; y < found.mask.rows; ++y)
        for (int x = 0; x < found.mask.cols; ++x) {
            const int row = down.cell[y], column = across.cell[x];
            const float upper = value(row, column) + (value(row, column + 1) - value(row, column)) * across.weight[x];
            const float left = value(row + 1, column), right = value(row + 1, column + 1);
            const float lower = left + (right - left) * across.weight[x];
            found.mask.at<uint8_t>(y, x) = upper + (lower - upper) * down.weight[y] >= 0.5f;
        }
}

// By label, the least score to keep where none is asked for: what the export found best, or 0.3.
std::vector<float> usual_scores(const json& meta) {
    const json found = meta.value("suggested_score", json::object());
    const float common = found.value("score", 0.3f);
    const json own = found.value("per_class", json::object());
    std::vector<float> scores;
    for (const json& name : meta["classes"]) scores.push_back(own.value(name.get<std::string>(), common));
    return scores;
}

// The detections of the batch's first picture with a score of `least[label]` or more, best first.
std::vector<Detection> decode(
    std::vector<Ort::Value>& outputs, const cv::Size& size, const Prepared& input, const std::vector<float>& least) {
    const int count = outputs[0].GetTensorMutableData<int32_t>()[0];  // rows from here on are empty
    const float* boxes = outputs[1].GetTensorMutableData<float>();
    const float* scores = outputs[2].GetTensorMutableData<float>();
    const int32_t* labels = outputs[3].GetTensorMutableData<int32_t>();
    std::vector<Detection> all;
    for (int row = 0; row < count; ++row) {
        Detection found{labels[row], scores[row], {}, {}, 0, 0};
        float predicted[4];  // it may reach beyond the picture, and the mask covers it
        for (int side = 0; side < 4; ++side) {
            const float scale = side % 2 ? input.scale_y : input.scale_x;
            const float limit = float(side % 2 ? size.height : size.width);
            predicted[side] = boxes[4 * row + side] / scale;
            found.box[side] = std::clamp(predicted[side], 0.0f, limit);
        }
        const bool in_padding = found.box[2] <= found.box[0] || found.box[3] <= found.box[1];
        if (found.score < least[found.label] || in_padding) continue;
        if (outputs.size() == 5) {
            const int side = int(outputs[4].GetTensorTypeAndShapeInfo().GetShape()[2]);
            paste(outputs[4].GetTensorMutableData<float>() + size_t(row) * side * side, side, predicted, size, found);
        }
        all.push_back(found);
    }
    return all;
}

std::vector<Detection> detect(
    Ort::Session& session, const json& meta, const cv::Mat& picture, const std::vector<float>& least) {
    Prepared input = prepare(picture, meta);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const bool bytes = meta["input"]["dtype"] == "uint8";
    const auto type = bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    Ort::Value tensor = Ort::Value::CreateTensor(
        memory, input.bytes.data(), input.bytes.size(), input.shape.data(), input.shape.size(), type);
    const std::string input_name = meta["input"]["name"];
    const std::vector<std::string> names = meta["outputs"];
    std::vector<const char*> wanted;
    for (const auto& name : names) wanted.push_back(name.c_str());
    const char* given[] = {input_name.c_str()};
    auto outputs = session.Run(Ort::RunOptions{nullptr}, given, &tensor, 1, wanted.data(), wanted.size());
    return decode(outputs, picture.size(), input, least);
}

void draw(cv::Mat& picture, const std::vector<Detection>& all, const json& classes) {
    for (auto one = all.rbegin(); one != all.rend(); ++one) {  // the best on top
        cv::RNG random(uint64_t(one->label) + 1);
        const cv::Scalar colour(random.uniform(64, 256), random.uniform(64, 256), random.uniform(64, 256));
        if (!one->mask.empty()) {
            cv::Mat part = picture(cv::Rect(one->x, one->y, one->mask.cols, one->mask.rows)), plain;
            cv::addWeighted(part, 0.5, cv::Mat(part.size(), CV_8UC3, colour), 0.5, 0, plain);
            plain.copyTo(part, one->mask);
        }
        const cv::Point corner(cvRound(one->box[0]), cvRound(one->box[1]));
        cv::rectangle(picture, corner, cv::Point(cvRound(one->box[2]), cvRound(one->box[3])), colour, 2);
        const std::string text = classes[one->label].get<std::string>() + cv::format(" %.2f", one->score);
        const cv::Point above(corner.x, std::max(corner.y - 4, 12));
        cv::putText(picture, text, above, cv::FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv::LINE_AA);
    }
}

int main(int count, char** arguments) try {
    if (count < 3 || count > 5) {
        std::cerr << "usage: run_onnx ARTEFACT PICTURE [SCORE [FOUND.png]]\n";
        return 2;
    }
    const std::filesystem::path folder = arguments[1];
    std::ifstream file(folder / "meta.json");
    if (!file) throw std::runtime_error((folder / "meta.json").string() + ": cannot be read");
    const json meta = json::parse(file);
    if (meta["format"] != 2 || meta["kind"] != "onnx")
        throw std::runtime_error(folder.string() + ": this program reads ONNX artefacts of format 2");
    cv::Mat picture = cv::imread(arguments[2], cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION);
    if (picture.empty()) throw std::runtime_error(std::string(arguments[2]) + ": not a picture that OpenCV reads");

    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "run_onnx");
    const std::filesystem::path model = folder / meta["file"].get<std::string>();
    Ort::Session session(environment, model.c_str(), Ort::SessionOptions{});
    std::vector<float> least = usual_scores(meta);
    if (count > 3) std::fill(least.begin(), least.end(), std::stof(arguments[3]));
    const auto all = detect(session, meta, picture, least);
    for (const auto& one : all) {
        json line = {{"class", meta["classes"][one.label]}, {"score", one.score}, {"box", one.box}};
        if (!one.mask.empty()) line["mask_pixels"] = cv::countNonZero(one.mask);
        std::cout << line << "\n";
    }
    if (count > 4) {
        draw(picture, all, meta["classes"]);
        if (!cv::imwrite(arguments[4], picture)) throw std::runtime_error(std::string(arguments[4]) + ": not written");
    }
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
