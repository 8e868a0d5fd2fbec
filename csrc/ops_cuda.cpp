// The kernels on CUDA devices: one call for a table of layers. Nothing here waits for the device: what decoders find is
// left in a tensor there.
#include "kernels/cuda_job.h"
#include "kernels/ecsq_format.h"
#include "kernels/ecsq_kernels.h"
#include "ops_common.h"

#if defined(COMMPRESS_CUDA)
#include <dlfcn.h>
#endif

namespace {

using namespace commpress;

#if defined(COMMPRESS_CUDA)

using OptionalTensor = std::optional<Tensor>;

// The stream that torch works on. Its CUDA half has the function; this library also loads where that is missing.
void* stream_of(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(getter, "commpress: this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "commpress: no current CUDA stream");
  return stream;
}

cuda::Queue queue_of(const Tensor& tensor) {
  const int32_t device = tensor.get_device();
  return {device, cuda::processors_of(device), stream_of(device)};
}

void check_launch(int error) { STD_TORCH_CHECK(error == 0, "commpress: CUDA error ", error, " at a launch"); }

int64_t substream_numel(const cuda::Layer& segment) {
  STD_TORCH_CHECK(segment.numel > 0 && segment.numel <= ECSQ_SEGMENT, "commpress: a segment has 1 to ", ECSQ_SEGMENT,
                  " coordinates");
  return EcsqSubstreams(cuda::entropy_codec_of(segment), segment.numel).each * ECSQ_BLOCK;
}

// `table` is in host memory for one layer, else on the device, and then `units` says which layer each block belongs to.
cuda::Job job_of(const Tensor& table, const OptionalTensor& units, int64_t blocks, const Key& key,
                 const OptionalTensor& counter, const Tensor& values) {
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Long && table.dim() == 2 && table.is_contiguous() &&
                      table.size(1) == cuda::LAYER_COLUMNS,
                  "commpress: a table of layers must be a contiguous int64 tensor of ", cuda::LAYER_COLUMNS,
                  " columns");
  cuda::Job job{nullptr, nullptr, {}, blocks, key, nullptr};
  const auto* const rows = reinterpret_cast<const cuda::Layer*>(table.const_data_ptr<int64_t>());
  if (units) {
    STD_TORCH_CHECK(units->scalar_type() == ScalarType::Int && units->dim() == 1 && units->is_contiguous() &&
                        units->numel() == blocks && units->get_device() == values.get_device() &&
                        table.get_device() == values.get_device(),
                    "commpress: which layer each block belongs to must be a contiguous int32 tensor of ", blocks,
                    " numbers on the device of the values, and so the table of layers");
    job.layers = rows;
    job.layer_of_unit = units->const_data_ptr<int32_t>();
  } else {
    STD_TORCH_CHECK(table.is_cpu() && table.size(0) == 1,
                    "commpress: a table of one layer must be in host memory, any other needs `units`");
    job.single = rows[0];
    const bool topk = job.single.family == cuda::TOPK_SEGMENTS;
    const int64_t grain = topk ? cuda::unpacked_topk(static_cast<int32_t>(job.single.rate)).block : BLOCK;
    const int64_t block = job.single.family == cuda::ENTROPY ? substream_numel(job.single) : grain;
    STD_TORCH_CHECK(job.single.numel == values.numel() && job.single.offset % grain == 0 && job.single.offset >= 0 &&
                        blocks == (values.numel() + block - 1) / block,
                    "commpress: the layer's size or offset is not that of the values");
  }
  if (counter) {
    STD_TORCH_CHECK(counter->scalar_type() == ScalarType::Long && counter->numel() == 1 &&
                        counter->get_device() == values.get_device(),
                    "commpress: a step counter must be one int64 on the device of the values");
    job.step = counter->const_data_ptr<int64_t>();
  }
  return job;
}

// The levels that layers of BITSHIFT look up; of a table on the device they cannot be counted.
const float* codebooks_of(const OptionalTensor& codebooks, const cuda::Job& job, const Tensor& values) {
  STD_TORCH_CHECK(codebooks && codebooks->scalar_type() == ScalarType::Float && codebooks->dim() == 1 &&
                      codebooks->is_contiguous() && codebooks->get_device() == values.get_device(),
                  "commpress: codebooks must be a contiguous 1-D float32 tensor on the device of the values");
  if (!job.layers) {
    const cuda::Layer& layer = job.single;
    const Trellis t = cuda::unpacked_trellis(static_cast<int32_t>(layer.rate), layer.centroid != 0);
    STD_TORCH_CHECK(layer.bits >= 0 && layer.bits + codebook_size(t) <= codebooks->numel(),
                    "commpress: the layer's codebook is not among the codebooks");
  }
  return codebooks->const_data_ptr<float>();
}

// Memory for some blocks of threads, `words` for each; of a table on the device it is not known how many they need.
cuda::Scratch scratch_of(const OptionalTensor& scratch, int64_t words, const cuda::Job& job, const Tensor& values) {
  STD_TORCH_CHECK(scratch && scratch->scalar_type() == ScalarType::Int && scratch->dim() == 1 &&
                      scratch->is_contiguous() && scratch->get_device() == values.get_device() && words > 0 &&
                      (scratch->numel() >= words || job.units == 0),
                  "commpress: scratch memory must be a contiguous 1-D int32 tensor on the device of the values, of at "
                  "least ",
                  words, " words");
  if (!job.layers) {
    const cuda::Layer& layer = job.single;
    const int64_t least = layer.family == cuda::ENTROPY
                              ? cuda::EntropyScratch(cuda::entropy_codec_of(layer), layer.numel).end
                              : cuda::scratch_words(cuda::unpacked_trellis(static_cast<int32_t>(layer.rate), false));
    STD_TORCH_CHECK(words >= least, "commpress: this layer needs ", least,
                    " words of scratch memory for a block of threads, got ", words);
  }
  return {reinterpret_cast<uint32_t*>(scratch->mutable_data_ptr<int32_t>()), words,
          static_cast<int32_t>(scratch->numel() / words)};
}

void check_payload(const Tensor& payload, int64_t nbytes, const Tensor& values) {
  STD_TORCH_CHECK(payload.scalar_type() == ScalarType::Byte && payload.dim() == 1 && payload.is_contiguous() &&
                      payload.numel() == nbytes && payload.get_device() == values.get_device(),
                  "commpress: a payload must be a contiguous 1-D uint8 tensor of ", nbytes,
                  " bytes on the device of the values");
}

void encode_table_op(Tensor x, Tensor payload, Tensor table, OptionalTensor units, int64_t blocks, int64_t nbytes,
                     int64_t families, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, double gain,
                     OptionalTensor counter, OptionalTensor codebooks, OptionalTensor scratch, int64_t scratch_words) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK((dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half) &&
                      x.dim() == 1 && x.is_contiguous(),
                  "commpress: values must be a contiguous 1-D float32, bfloat16 or float16 tensor");
  check_payload(payload, nbytes, x);
  cuda::Job job = job_of(table, units, blocks, key_of(seed, step, sender_phase, tensor), counter, x);
  cuda::Scratch memory{nullptr, 0, 0};
  if (families & cuda::family_bit(cuda::BITSHIFT)) job.codebooks = codebooks_of(codebooks, job, x);
  if (families & (cuda::family_bit(cuda::BITSHIFT) | cuda::family_bit(cuda::ENTROPY)))
    memory = scratch_of(scratch, scratch_words, job, x);
  const cuda::Input input = dtype == ScalarType::Float      ? cuda::FLOAT32
                            : dtype == ScalarType::BFloat16 ? cuda::BFLOAT16
                                                            : cuda::FLOAT16;
  check_launch(cuda::encode(job, static_cast<uint32_t>(families), {x.const_data_ptr(), input}, static_cast<float>(gain),
                            payload.mutable_data_ptr<uint8_t>(), queue_of(x), memory));
}

// values = beta * values + gain * decoded payloads, in their order, or without what was there. `report`: int32, 1 + the
// position of a sender whose payload is invalid, and whether something is not finite; neither is ever cleared.
void decode_table_op(std::vector<Tensor> payloads, std::vector<int64_t> sender_phases, Tensor values, Tensor table,
                     OptionalTensor units, int64_t blocks, int64_t nbytes, int64_t families, int64_t seed, int64_t step,
                     int64_t tensor, bool accumulate, double gain, double beta, Tensor report, OptionalTensor counter,
                     OptionalTensor codebooks) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                  "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(report.scalar_type() == ScalarType::Int && report.numel() == 2 && report.is_contiguous() &&
                      report.get_device() == values.get_device(),
                  "commpress: a report is two int32 on the device of the values");
  for (const Tensor& payload : payloads) check_payload(payload, nbytes, values);
  const Key key = key_of(seed, step, 0, tensor);
  const Senders senders = senders_of(payloads, sender_phases, key);
  cuda::Job job = job_of(table, units, blocks, key, counter, values);
  if (families & cuda::family_bit(cuda::BITSHIFT)) job.codebooks = codebooks_of(codebooks, job, values);
  auto* const found = reinterpret_cast<cuda::Report*>(report.mutable_data_ptr<int32_t>());
  const int32_t count = static_cast<int32_t>(senders.keys.size());
  for (int32_t first = 0; first < count; first += cuda::MOST_SENDERS) {
    cuda::Sources sources{};
    sources.position = first;
    sources.count = count - first < cuda::MOST_SENDERS ? count - first : cuda::MOST_SENDERS;
    for (int32_t i = 0; i < sources.count; ++i) {
      sources.payload[i] = senders.from[first + i];
      sources.sender_phase[i] = senders.keys[first + i].sender_phase;
    }
    const cuda::Delivery delivery{accumulate || first > 0, static_cast<float>(gain),
                                  first ? 1.0f : static_cast<float>(beta)};
    check_launch(cuda::decode(job, static_cast<uint32_t>(families), sources, values.mutable_data_ptr<float>(), delivery,
                              found, queue_of(values)));
  }
}

bool cuda_built_op() { return true; }

#else

bool cuda_built_op() { return false; }

#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "encode_table(Tensor x, Tensor(a!) payload, Tensor table, Tensor? units, int blocks, int nbytes, int families, "
      "int seed, int step, int sender_phase, int tensor, float gain, Tensor? counter, Tensor? codebooks, "
      "Tensor(b!)? scratch, int scratch_words) -> ()");
  m.def(
      "decode_table(Tensor[] payloads, int[] sender_phases, Tensor(a!) values, Tensor table, Tensor? units, int "
      "blocks, int nbytes, int families, int seed, int step, int tensor, bool accumulate, float gain, float beta, "
      "Tensor(b!) report, Tensor? counter, Tensor? codebooks) -> ()");
  m.def("cuda_built() -> bool");
}

#if defined(COMMPRESS_CUDA)
STABLE_TORCH_LIBRARY_IMPL(commpress, CUDA, m) {
  m.impl("encode_table", TORCH_BOX(&encode_table_op));
  m.impl("decode_table", TORCH_BOX(&decode_table_op));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) { m.impl("cuda_built", TORCH_BOX(&cuda_built_op)); }
