// Tensors whose layers have a codec each: one call for a table of layers.
#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t COLUMNS = 6;  // of the table: family, rate, centroid, number added to the key's tensor, offset, numel

struct Part {
  Payload payload;
  int64_t first, byte;  // where it begins in the values and in the bytes
};

// The parts in order, checked against the tensors.
std::vector<Part> parts_of(const Tensor& table, const Key& key, const Tensor& values, const Tensor& payload) {
  check_kinds(values, payload);
  STD_TORCH_CHECK(
      table.scalar_type() == ScalarType::Long && table.dim() == 2 && table.is_contiguous() && table.size(1) == COLUMNS,
      "commpress: a table of layers must be a contiguous int64 tensor of ", COLUMNS, " columns");
  const int64_t* row = table.const_data_ptr<int64_t>();
  std::vector<Part> parts;
  int64_t first = 0, byte = 0;
  for (int64_t i = 0; i < table.size(0); ++i, row += COLUMNS) {
    const int64_t family = row[0], rate = row[1], offset = row[4], numel = row[5];
    STD_TORCH_CHECK(family >= RAW && family <= HADAMARD_LLOYD, "commpress: unknown codec family ", family);
    STD_TORCH_CHECK(family <= CAST_BF16 || (rate >= 1 && rate <= 8 * RATE_ONE),
                    "commpress: rate must be in (0, 8] bits");
    STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0 && numel >= 0 && numel <= values.numel() - first,
                    "commpress: a layer has an impossible offset or size");
    Part part{
        {{static_cast<int32_t>(family), static_cast<int32_t>(rate), row[2] != 0}, key, offset, numel}, first, byte};
    part.payload.key.tensor += static_cast<uint32_t>(row[3]);
    parts.push_back(part);
    first += numel;
    byte += payload_nbytes(part.payload.codec, offset, numel);
  }
  STD_TORCH_CHECK(first == values.numel() && byte == payload.numel(), "commpress: the layers have ", first,
                  " coordinates and ", byte, " bytes, the tensors ", values.numel(), " and ", payload.numel());
  return parts;
}

bool valid(const std::vector<Part>& parts, const uint8_t* payload) {
  for (const Part& part : parts)
    if (inspect(part.payload, payload + part.byte).invalid_block >= 0) return false;
  return true;
}

void check_payloads(const std::vector<Tensor>& payloads, int64_t nbytes) {
  for (const Tensor& payload : payloads)
    STD_TORCH_CHECK(payload.scalar_type() == ScalarType::Byte && payload.dim() == 1 && payload.is_contiguous() &&
                        payload.numel() == nbytes,
                    "commpress: a payload must be a contiguous 1-D uint8 tensor of ", nbytes, " bytes");
}

void encode_layers_op(Tensor x, Tensor payload, Tensor table, int64_t seed, int64_t step, int64_t sender_phase,
                      int64_t tensor, double gain, int64_t isa) {
  const std::vector<Part> parts = parts_of(table, key_of(seed, step, sender_phase, tensor), x, payload);
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for (const Part& part : parts)
    for_pieces(part.payload, torch_parallel, [&](const Payload& piece, int64_t first, int64_t byte) {
      encode(piece, from + part.first + first, static_cast<float>(gain), to + part.byte + byte, path);
    });
}

// False for an invalid payload, and then nothing is written.
bool decode_layers_op(Tensor payload, Tensor out, Tensor table, int64_t seed, int64_t step, int64_t sender_phase,
                      int64_t tensor, bool accumulate, double gain, double beta, int64_t isa) {
  const std::vector<Part> parts = parts_of(table, key_of(seed, step, sender_phase, tensor), out, payload);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  if (!valid(parts, from)) return false;
  float* const to = out.mutable_data_ptr<float>();
  for (const Part& part : parts)
    for_pieces(part.payload, torch_parallel, [&](const Payload& piece, int64_t first, int64_t byte) {
      decode(piece, from + part.byte + byte, to + part.first + first, accumulate, static_cast<float>(gain),
             static_cast<float>(beta), path);
    });
  return true;
}

// As `reduce` in ops.cpp.
int64_t reduce_layers_op(std::vector<Tensor> payloads, std::vector<int64_t> sender_phases, Tensor values, Tensor out,
                         Tensor table, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, double beta,
                         int64_t isa) {
  const std::vector<Part> parts = parts_of(table, key_of(seed, step, sender_phase, tensor), values, out);
  check_payloads(payloads, out.numel());
  const Isa path = isa_of(isa);
  float* const x = values.mutable_data_ptr<float>();
  uint8_t* const to = out.mutable_data_ptr<uint8_t>();
  bool finite = true;
  for (const Part& part : parts) {
    const Senders senders = senders_of(payloads, sender_phases, part.payload.key, part.byte);
    const Outcome outcome = reduce_payloads(part.payload, senders.keys, senders.from, x + part.first,
                                            static_cast<float>(beta), to + part.byte, path, torch_parallel);
    if (outcome.invalid >= 0) return outcome.invalid;
    finite &= outcome.finite;
  }
  return finite ? -1 : -2;
}

// As `decode_sum` in ops.cpp.
int64_t decode_sum_layers_op(std::vector<Tensor> payloads, std::vector<int64_t> sender_phases, Tensor values,
                             Tensor table, int64_t seed, int64_t step, int64_t tensor, int64_t isa) {
  STD_TORCH_CHECK(!payloads.empty(), "commpress: no payload to decode");
  const std::vector<Part> parts = parts_of(table, key_of(seed, step, 0, tensor), values, payloads[0]);
  check_payloads(payloads, payloads[0].numel());
  const Isa path = isa_of(isa);
  float* const out = values.mutable_data_ptr<float>();
  bool finite = true;
  for (const Part& part : parts) {
    const Senders senders = senders_of(payloads, sender_phases, part.payload.key, part.byte);
    const Outcome outcome =
        sum_payloads(part.payload, senders.keys, senders.from, out + part.first, path, torch_parallel);
    if (outcome.invalid >= 0) return outcome.invalid;
    finite &= outcome.finite;
  }
  return finite ? -1 : -2;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "encode_layers(Tensor x, Tensor(a!) payload, Tensor table, int seed, int step, int sender_phase, int tensor, "
      "float gain, int isa) -> ()");
  m.def(
      "decode_layers(Tensor payload, Tensor(a!) out, Tensor table, int seed, int step, int sender_phase, int tensor, "
      "bool accumulate, float gain, float beta, int isa) -> bool");
  m.def(
      "reduce_layers(Tensor[] payloads, int[] sender_phases, Tensor(a!) values, Tensor(b!) out, Tensor table, int "
      "seed, int step, int sender_phase, int tensor, float beta, int isa) -> int");
  m.def(
      "decode_sum_layers(Tensor[] payloads, int[] sender_phases, Tensor(a!) values, Tensor table, int seed, int step, "
      "int tensor, int isa) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("encode_layers", TORCH_BOX(&encode_layers_op));
  m.impl("decode_layers", TORCH_BOX(&decode_layers_op));
  m.impl("reduce_layers", TORCH_BOX(&reduce_layers_op));
  m.impl("decode_sum_layers", TORCH_BOX(&decode_sum_layers_op));
}
