// Where a data set comes from: a folder of IDX files, the cache, a download, or the built-in
// digits.
#pragma once

#include <filesystem>
#include <string>

#include "models/dataset.h"

namespace fm {

// $XDG_CACHE_HOME/fm/mnist; ~/.cache where the variable is not an absolute path.
std::filesystem::path mnist_cache();

struct DataChoice {
  DataSet data;
  std::string source;  // "digits" or the folder: what finds the same set again
  std::string note;    // for people, where the choice needs a word ("MNIST not found, ...")
};

// "auto": what is found in $FM_DATA_DIR, then in the cache, else digits, with a note. "digits". Any
// other text is a folder. Throws Fault::data for a folder without a valid set. `name` of an IDX set
// is "mnist" where it is the real one, else its folder's name.
DataChoice load_data(const std::string& source, Split split, CpuQueue& queue);

// Where MNIST is downloaded from, and what its files must be: a base URL and the md5 of each file.
// FM_MNIST_URL and FM_MNIST_MD5 (four sums, train images, train labels, test images, test labels,
// comma-separated) override them.
void download_mnist(const std::filesystem::path& to);

}  // namespace fm
