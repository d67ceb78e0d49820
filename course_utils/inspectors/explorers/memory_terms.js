// course_utils/memory in JavaScript, number for number: shape and recipe -> bytes, term by term, at
// each moment of a training step. The reasons stand in the Python files of the same names.

import { Refusal } from "./explore.js";

const BYTES = { fp32: 4, bf16: 2, fp16: 2 };
const [FP32, MIB] = [4, 2 ** 20];
const FINAL = "final norm, positions, ids";
const CHECKPOINTS = "checkpoints (inputs of the blocks)";
const sum = (values) => values.reduce((a, b) => a + b, 0);
const total = (terms) => sum(Object.values(terms));
const weightsOf = ([, inputs, outputs]) => inputs * outputs;

const MATRICES = {
  gpt2: ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
  opt: ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
  llama: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
};

const outputAt = ({ family }) => (family === "gpt2" ? 1 : 3); // the last matrix of the attention

// A model's shape from its row in the state: linears are [name, inputs, outputs, bias].
export function shapeOf(name, { columns, shapes }) {
  const row = shapes[name];
  const shape = Object.fromEntries(columns.map((column, i) => [column, row[i]]));
  return { ...shape, name, linears: row.at(-1).map((sizes, i) => [MATRICES[shape.family][i], ...sizes]) };
}

// ---- recipe.py ------------------------------------------------------------------------------------

function completed(r, shape) {
  const trains = r.task !== "inference";
  const peft = r.method !== "full" && trains;
  const residual = BYTES[r.weights];
  const full = {
    ...r, trains, peft, residual,
    compute: BYTES[r.autocast === "none" ? r.weights : r.autocast],
    holdsReference: ["dpo", "ppo"].includes(r.task) && (r.reference === "copy" || (r.reference === "auto" && r.method === "full")),
    castsWeights: r.autocast !== "none" && residual === 4 && r.method !== "qlora",
  };
  return { ...full, targeted: targeted(shape, full) };
}

function targeted(shape, r) {
  if (!r.peft) return new Set();
  const names = shape.linears.map(([name]) => name);
  const wanted = r.targets === "all-linear" ? names : typeof r.targets === "string" ? r.targets.split(",").map((t) => t.trim()) : r.targets;
  const found = new Set(names.filter((name) => wanted.some((t) => name === t || name.endsWith(`.${t}`))));
  const limit = Math.min(...shape.linears.filter(([name]) => found.has(name)).map(([, i, o]) => Math.min(i, o)));
  if (!(r.rank >= 1 && r.rank <= limit)) throw new Refusal(`rank ${r.rank} does not fit ${shape.name}: it must be from 1 to ${limit}.`);
  return found;
}

// ---- held.py --------------------------------------------------------------------------------------

function matrixBytes(linear, r) {
  const weights = weightsOf(linear);
  if (r.method !== "qlora") return weights * r.residual;
  const scales = Math.ceil(weights / 64);
  const packed = Math.ceil(weights / 2);
  if (!r.double_quant) return packed + scales * FP32 + 16 * FP32;
  return packed + scales + Math.ceil(scales / 256) * FP32 + 256 * FP32 + FP32 + 16 * FP32;
}

const adapterTensors = (shape, r) => shape.linears.filter(([name]) => r.targeted.has(name))
  .flatMap(([, inputs, outputs]) => [[shape.layers, r.rank, inputs], [shape.layers, outputs, r.rank]]);

function blockTensors(shape) {
  const matrices = shape.linears.map(([, inputs, outputs]) => [shape.layers, outputs, inputs]);
  const biases = shape.linears.filter(([, , , bias]) => bias).map(([, , outputs]) => [shape.layers, outputs, 1]);
  const norms = [[shape.layers * (shape.family === "llama" ? 2 : 4), shape.hidden, 1]];
  if (shape.qk_norm) norms.push([2 * shape.layers, shape.head_dim, 1]);
  return [...matrices, ...biases, ...norms];
}

function trainedTensors(shape, r) {
  const heads = r.task === "reward" ? [[1, 1, shape.hidden]] : r.task === "ppo" ? [[1, 1, shape.hidden], [1, 1, 1]] : [];
  if (r.peft) return [...adapterTensors(shape, r), ...heads];
  const width = shape.embedding || shape.hidden;
  const tables = [[1, shape.vocabulary, width]];
  if (shape.positions) tables.push([1, shape.positions, shape.hidden]);
  if (shape.embedding) tables.push([2, shape.hidden, width]);
  if (!shape.tied && r.task !== "reward") tables.push([1, shape.vocabulary, width]);
  if (shape.final_norm) tables.push([shape.family === "llama" ? 1 : 2, shape.hidden, 1]);
  return [...tables, ...blockTensors(shape), ...heads];
}

const numbersIn = (tensors) => sum(tensors.map(([n, rows, columns]) => n * rows * columns));

function optimizerBytes(tensors, name, width) {
  const kind = name.replace(/^paged-/, "");
  return sum(tensors.map(([n, rows, columns]) => {
    const size = rows * columns;
    let each = { "adamw": 2 * size * width, "sgd": 0, "sgd-momentum": size * width }[kind];
    if (kind === "adafactor") each = (columns > 1 ? rows + columns : rows) * width;
    if (kind === "adamw-8bit") each = size >= 4096 ? 2 * (size + Math.ceil(size / 256) * FP32) : 2 * size * FP32;
    return n * each;
  }));
}

function heldBytes(shape, r) {
  const trained = r.trains ? trainedTensors(shape, r) : [];
  const width = r.peft ? BYTES[r.adapters] : r.residual;
  const blocks = r.peft ? adapterTensors(shape, r) : blockTensors(shape);
  const matrices = shape.layers * sum(shape.linears.map(weightsOf));
  let casts = r.castsWeights ? 2 * matrices : 0;
  let cached = r.peft ? 0 : casts;
  if (r.peft && r.autocast !== "none" && BYTES[r.adapters] === FP32) {
    cached = 2 * numbersIn(adapterTensors(shape, r));
    casts += cached;
  }
  const hasHead = r.task !== "reward" && r.logits !== "tiled" && r.autocast !== "none" && r.residual === FP32;
  const largest = Math.max(0, ...trained.map(([, rows, columns]) => rows * columns));
  return {
    weights: modelBytes(shape, r),
    gradients: numbersIn(trained) * width,
    headGradient: r.trains && !r.peft && r.task !== "reward" ? shape.table * r.residual : 0,
    blockGradients: r.trains ? numbersIn(blocks) * width : 0,
    optimizer: optimizerBytes(trained, r.optimizer, r.optimizer === "paged-adamw" ? FP32 : width),
    optimizerWork: r.optimizer === "adafactor" ? 2 * largest * FP32 : 0,
    blockCasts: casts,
    cachedCasts: cached,
    headCast: hasHead ? 2 * shape.table : 0,
  };
}

function modelBytes(shape, r) {
  const matrices = shape.layers * sum(shape.linears.map((x) => matrixBytes(x, r)));
  const vectors = (shape.trunk_parameters - shape.layers * sum(shape.linears.map(weightsOf))) * r.residual;
  let head = shape.tied ? 0 : shape.table * r.residual;
  if (r.task === "reward") head = shape.hidden * r.residual;
  const found = {
    [`weights: blocks' matrices (${r.method === "qlora" ? "NF4" : r.weights})`]: matrices,
    [`weights: embedding, head, norms (${r.weights})`]: vectors + head,
  };
  if (r.peft) found["LoRA adapters"] = numbersIn(adapterTensors(shape, r)) * BYTES[r.adapters];
  if (r.holdsReference) found["reference model"] = matrices + vectors + head;
  if (r.task === "ppo") {
    found["value head"] = (shape.hidden + 1) * FP32;
    if (r.reward_model === "copy") found["reward model"] = matrices + vectors + shape.hidden * r.residual;
  }
  return found;
}

// ---- activations.py -------------------------------------------------------------------------------

// Bytes that a block keeps, of its attention and of its MLP, and the work of either's backward.
function blockBytes(shape, r, batch, seq) {
  const [n, d, f, family] = [batch * seq, shape.hidden, shape.ffn, shape.family];
  let out = r.method === "qlora" ? r.residual : r.compute;
  const names = MATRICES[family];
  const split = outputAt(shape);
  const qWidth = shape.heads * shape.head_dim;
  const reads = (names, size, width, kept = false) => readBytes(r, names, size, n, width, kept);
  let attention = normBytes(shape, r, n) + reads(names.slice(0, split), n * d, r.residual);
  attention += attentionBytes(shape, r, batch, seq);
  attention += reads([names[split]], n * qWidth, r.compute, r.attention !== "eager");
  let mlp = normBytes(shape, r, n) + reads(names.slice(split + 1, -1), n * d, r.residual);
  const wide = n * f * out;
  if (family === "llama") mlp += 3 * wide;
  else if (family === "opt") mlp += wide;
  else if (r.autocast !== "none") {
    mlp += wide + 3 * n * f * FP32;
    out = FP32;
  } else mlp += 4 * wide;
  mlp += reads(names.slice(-1), n * f, out, family === "opt");
  return { attention, mlp, saved: attention + mlp, attentionWork: attentionWork(shape, r, batch, seq), mlpWork: mlpWork(shape, r, n, out) };
}

function mlpWork(shape, r, n, out) {
  const [wide, size] = [n * shape.ffn, n * shape.hidden];
  const own = BYTES[r.adapters];
  const casts = own !== (r.autocast === "none" ? r.residual : r.compute);
  if (!(r.peft && casts)) return 2 * wide * out + size * r.residual;
  if (r.autocast === "none") return wide * own + 6 * size * r.residual;
  return wide * (out + own) + size * ((shape.family === "llama" ? 2 : 3) * r.residual + 3 * r.compute);
}

function normBytes(shape, r, n) {
  const size = n * shape.hidden;
  if (shape.family !== "llama") return size * r.residual + 8 * n;
  return size * FP32 + FP32 * n + (r.peft ? 0 : size * r.residual);
}

function readBytes(r, names, size, n, width, kept) {
  if (!r.peft) {
    if (r.autocast !== "none" && width !== r.compute) return names.length * size * r.compute;
    return kept ? 0 : size * width;
  }
  const adapted = names.filter((name) => r.targeted.has(name)).length;
  if (!adapted) return 0;
  const own = BYTES[r.adapters];
  const taken = r.autocast === "none" ? own : r.compute;
  const shared = r.autocast === "none" ? own === width
    : width === taken && (own === width || (r.method === "qlora"));
  const low = adapted * r.rank * n * taken;
  if (shared) return low + (kept ? 0 : size * width);
  return adapted * size * taken + low;
}

function attentionBytes(shape, r, batch, seq) {
  const [n, comp] = [batch * seq, r.compute];
  const [q, kv] = [shape.heads, shape.kv_heads].map((heads) => n * heads * shape.head_dim);
  let kept = 0;
  if (shape.qk_norm) {
    kept += (q + kv) * FP32 + n * (shape.heads + shape.kv_heads) * FP32;
    if (!r.peft) kept += (q + kv) * (r.method === "qlora" ? r.residual : r.compute);
  }
  if (r.attention !== "eager") return kept + q * comp + 2 * kv * comp + q * comp + n * shape.heads * FP32;
  kept += q * comp + 2 * q * comp;
  const scores = batch * shape.heads * seq * seq;
  if (comp === FP32) return kept + scores * FP32;
  return kept + (shape.family === "gpt2" && r.autocast === "none" ? scores * comp : scores * (FP32 + comp));
}

function attentionWork(shape, r, batch, seq) {
  if (r.attention === "eager") return 2 * batch * shape.heads * seq * seq * FP32;
  return batch * seq * 2 * (shape.heads + shape.kv_heads) * shape.head_dim * r.compute;
}

// ---- estimate.py ----------------------------------------------------------------------------------

// {moments: {moment: {term: bytes}}, moment, terms, peak, context, fragmentation, paged, total}
export function estimate(shape, recipe, seq, batch, completion = null) {
  if (seq > shape.context) throw new Refusal(`${seq} tokens are beyond the context of ${shape.name}, ${shape.context}.`);
  const r = completed(recipe, shape);
  let scored = completion ?? seq - 1;
  if (["sft", "dpo"].includes(r.task) && r.logits === "all") scored = seq;
  const moments = momentsOf(shape, r, seq, batch, scored);
  const { optimizer } = moments.has;
  const pages = r.optimizer.startsWith("paged");
  const paged = pages ? optimizer : 0;
  if (!pages) {
    for (const terms of Object.values(moments.found)) terms["optimizer states"] = optimizer;
  }
  let moment = null;
  for (const name of Object.keys(moments.found)) if (moment === null || total(moments.found[name]) > total(moments.found[moment])) moment = name;
  const terms = Object.fromEntries(Object.entries(moments.found[moment]).filter(([, size]) => size));
  const peak = total(terms);
  const [context, fragmentation] = [500 * MIB, halfToEven(0.05 * peak)];
  return { moments: moments.found, moment, terms, peak, context, fragmentation, paged, total: peak + context + fragmentation };
}

// As Python's round().
function halfToEven(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

function momentsOf(shape, r, seq, batch, completion) {
  const rows = ["reward", "dpo"].includes(r.task) ? 2 * batch : batch;
  const s = {
    shape, r, seq, completion, rows,
    has: heldBytes(shape, r),
    sampled: r.rollouts || batch,
    tokens: rows * seq,
    scored: rows * completion,
    block: blockBytes(shape, r, rows, seq),
    whole: ["sft", "dpo", "ppo"].includes(r.task) && r.logits !== "tiled",
  };
  let found = {};
  if (r.task === "inference" || r.task === "ppo") found["sampling"] = sampling(s);
  if (r.task === "ppo") found["scoring"] = noGrad(s);
  if (r.trains) found = { ...found, ...training(s) };
  for (const name of Object.keys(found)) {
    found[name] = { ...s.has.weights, ...found[name] };
    if (r.accumulate && r.trains) found[name]["gradients"] = s.has.gradients;
  }
  return { found, has: s.has };
}

function training(s) {
  const { shape, r, has } = s;
  const kept = keptBytes(s);
  const found = { "end of the forward pass": { ...kept, ...casts(s, "forward"), ...lossBytes(s) } };
  if (r.task === "dpo") {
    const whole = s.whole ? FP32 * s.scored * shape.vocabulary : 0;
    found["reference's forward pass"] = { ...kept, ...casts(s, "forward"), "logits": whole, ...noGrad(s) };
  }
  found["backward of the loss"] = { ...kept, ...casts(s, "loss"), ...lossGradient(s) };
  if (has.headGradient) {
    const cast = r.autocast !== "none";
    found["gradient of the head"] = {
      ...kept, ...casts(s, "loss", false),
      "logits": cast || !s.whole ? 0 : r.compute * s.scored * shape.vocabulary,
      "gradients": has.headGradient,
      "working set": (cast ? Math.floor(has.headGradient / 2) : 0) + (r.accumulate ? has.headGradient : 0),
    };
  }
  return { ...found, ...backward(s, kept) };
}

function backward(s, kept) {
  const { shape, r, has, block } = s;
  const incoming = s.tokens * shape.hidden * r.residual;
  const { [FINAL]: dropped, ...rest } = kept;
  let last = rest;
  let first = { "activations": block.saved };
  if (r.checkpointing) {
    const twice = shape.family !== "llama" || r.residual === FP32 ? incoming : 0;
    const again = { "a block's activations, computed again": block.saved - twice };
    last = { ...last, ...again };
    first = { [CHECKPOINTS]: incoming, ...again };
  }
  const work = { ...casts(s, "block"), "working set": blockWork(s) };
  const done = Math.floor((has.blockGradients * (shape.layers - 1)) / shape.layers);
  const added = shape.tied || r.accumulate ? has.headGradient : 0;
  return {
    "backward of the last block": { ...last, ...work, "gradients": has.headGradient },
    "backward of the first block": { ...first, ...work, "gradients": has.headGradient + done },
    "gradient of the embedding": { "gradients": has.gradients, "working set": incoming + added },
    "optimizer step": { "gradients": has.gradients, "working set": has.optimizerWork },
  };
}

function blockWork({ shape, r, block }) {
  const mlp = shape.linears.slice(outputAt(shape) + 1).map((x) => weightsOf(x) * r.residual);
  const [lastBytes, mlpBytes] = r.peft ? [0, 0] : [mlp.at(-1), sum(mlp)];
  const work = Math.max(block.mlpWork + lastBytes, block.attentionWork + mlpBytes - block.mlp);
  return r.peft ? work + matrixWork(shape, r) : work;
}

function keptBytes(s) {
  const { shape, r, tokens: n } = s;
  const size = n * shape.hidden;
  const llama = shape.family === "llama";
  let final = size * (llama ? FP32 : r.residual);
  if (llama && !r.peft) final += size * r.residual;
  const rope = llama ? 2 * s.seq * shape.head_dim * r.residual : 0;
  const kept = { [FINAL]: final + rope + 8 * n + 8 * s.scored };
  if (r.checkpointing) return { [CHECKPOINTS]: shape.layers * size * r.residual, ...kept };
  return { "activations": shape.layers * s.block.saved, ...kept };
}

function casts({ shape, r, has }, when, head = true) {
  let copies = head ? has.headCast : 0;
  if (when === "block") copies = r.checkpointing ? Math.floor(has.blockCasts / shape.layers) : has.blockCasts;
  else if (!r.checkpointing) copies += has.blockCasts;
  else if (when === "forward") copies += has.cachedCasts;
  return { "autocast's copies of the weights": copies };
}

function headInput({ shape, r, tokens, scored }) {
  if (r.task === "reward") return tokens * shape.hidden * r.compute;
  return (r.task === "ppo" ? scored * shape.hidden * FP32 : 0) + (r.peft ? 0 : scored * shape.hidden * r.compute);
}

const eachLogit = (r) => r.compute + FP32 + (r.compute !== FP32 ? FP32 : 0);

function lossBytes(s) {
  const logits = s.whole ? eachLogit(s.r) * s.scored * s.shape.vocabulary : tiles(s);
  return { "logits": logits, "head's input": headInput(s) };
}

function lossGradient(s) {
  if (s.whole) return { "logits": 3 * FP32 * s.scored * s.shape.vocabulary, "head's input": headInput(s) };
  return { "logits": tiles(s, true), "head's input": headInput(s), "gradients": s.has.headGradient ? FP32 * s.shape.table : 0 };
}

function tiles({ shape, r, scored }, back = false) {
  if (r.task === "reward") return 0;
  let tile = Math.min(scored, 4096) * 32768 * r.compute;
  if (r.compute !== r.residual) tile += Math.min(shape.vocabulary, 32768) * shape.hidden * r.compute;
  return tile + (back ? FP32 * scored * shape.hidden : 0);
}

function noGrad(s) {
  const logits = s.whole ? eachLogit(s.r) * s.scored * s.shape.vocabulary : tiles(s);
  return { "working set": Math.max(forwardWork(s, s.rows, s.seq), logits + s.has.headCast) };
}

function forwardWork({ shape, r }, rows, seq) {
  const n = rows * seq;
  const wide = { llama: 3, gpt2: 4, opt: 2 }[shape.family];
  const around = (shape.family === "gpt2" ? 6 : 4) * n * shape.hidden * r.residual;
  let attention = n * 2 * (shape.heads + shape.kv_heads) * shape.head_dim * r.compute;
  if (r.attention === "eager") attention += 2 * rows * shape.heads * seq * seq * FP32;
  return Math.max(wide * n * shape.ffn * r.compute, attention, n * shape.ffn * r.compute + matrixWork(shape, r)) + around;
}

const matrixWork = (shape, r) => (r.method === "qlora" ? Math.max(...shape.linears.map(weightsOf)) * r.compute : 0);

function sampling(s) {
  const { shape, r } = s;
  const keys = shape.family === "llama" ? r.residual : r.compute;
  const cache = shape.layers * shape.kv_heads * shape.head_dim * s.sampled * s.seq * (keys + r.compute);
  const logits = (r.compute + FP32 + FP32 + 8) * s.sampled * shape.vocabulary;
  return { "KV cache": cache, "working set": Math.max(logits, forwardWork(s, s.sampled, s.seq - s.completion)) };
}

// The most rows at a time that fit into `room` bytes (gpus.py).
export function largestBatch(shape, recipe, seq, room) {
  const fits = (batch) => estimate(shape, recipe, seq, batch).total <= room;
  if (!fits(1)) return 0;
  let [low, high] = [1, 2];
  while (high <= 2 ** 20 && fits(high)) [low, high] = [high, 2 * high];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    [low, high] = fits(middle) ? [middle, high] : [low, middle];
  }
  return low;
}
