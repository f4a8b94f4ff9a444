// What a training checkpoint says beside its tensors, and the way back.
#pragma once

#include <filesystem>

#include "apps/train_config.h"
#include "engine/io/checkpoint.h"
#include "models/trainer.h"

namespace fm {

void write_training_checkpoint(const std::filesystem::path& path, Trainer& trainer,
                               const RunConfig& config);

// The run configuration a checkpoint was written with.
RunConfig training_config(const SafetensorsFile& file);

// Continues a trainer where the file left off, bit for bit on the same device. Throws Fault::usage
// where the model, the data set, the seed, the batch or the dtype is another; Fault::data where the
// file lacks what a resume needs.
void resume_from(const SafetensorsFile& file, Trainer& trainer, const DataSet& data);

}  // namespace fm
