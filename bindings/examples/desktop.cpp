// Classify a grey image in the PGM format (P5) and ask questions about it.
//
//     desktop BUNDLE ONNXRUNTIME IMAGE.pgm QUESTION...
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "umd_edge.hpp"

namespace {

struct Grey {
    std::uint32_t width = 0;
    std::uint32_t height = 0;
    std::vector<char> pixels;
};

Grey read_pgm(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    unsigned largest = 0;
    Grey image;
    file >> magic >> image.width >> image.height >> largest;
    file.get();
    if (!file || magic != "P5" || largest != 255 || image.width > 65535 || image.height > 65535)
        throw std::runtime_error("a PGM file of 8 bits (P5, 255) is needed");
    image.pixels.resize(std::size_t{image.width} * image.height);
    file.read(image.pixels.data(), static_cast<std::streamsize>(image.pixels.size()));
    if (!file)
        throw std::runtime_error("the PGM file ends early");
    return image;
}

int run(const std::vector<std::string> &arguments)
{
    umd_edge::Options options;
    options.onnxruntime = arguments[1].c_str();
    const umd_edge::Predictor predictor(arguments[0], options);
    const Grey grey = read_pgm(arguments[2]);
    const umd_edge::Pixels pixels(grey.pixels.data(), grey.pixels.size(), grey.width, grey.height);
    const umd_edge::Image image = predictor.encode(pixels);
    for (std::size_t i = 3; i < arguments.size(); i++) {
        const umd_edge::Result result = image.ask(arguments[i]);
        for (const umd_edge::Item &item : result.items)
            std::cout << arguments[i] << '\t' << item.name << '\t' << item.probability << '\n';
    }
    return 0;
}

} // namespace

int main(int count, char **arguments)
{
    if (count < 4) {
        std::cerr << "usage: desktop BUNDLE ONNXRUNTIME IMAGE.pgm QUESTION...\n";
        return 2;
    }
    try {
        return run({arguments + 1, arguments + count});
    } catch (const umd_edge::Error &error) {
        std::cerr << error.name() << ": " << error.what() << '\n';
        return error.status() >= 100 ? 1 : error.status() / 10;
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 4;
    }
}
