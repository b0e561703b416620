// Both directions against llama.cpp; run by check-llama-cpp.sh.
//
//   node check_llama_cpp.mjs KRON KRON_TRAIN MODEL.gguf PACKAGES SCRATCH [TOKENS.json]
//
// Models are compared in float32: products with quantised weights quantise the activations as well.

import {execFileSync} from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [, , kron, kronTrain, model, packages, scratch, tokensFile] = process.argv;
const modules = path.join(packages, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(modules));

const PROMPT = "The largest river of South America is the Amazon. The capital of France is";
const GREEDY = 24;
// Number of texts whose tokens are written on demand.
const WRITTEN = 60;
// Bound on log-probabilities: sums of some thousand float32 products in another order.
const BOUND = 1e-3;

const at = name => path.join(scratch, name);
const run = (...args) => execFileSync(kron, args, {stdio: ["ignore", "ignore", "inherit"]});
let failed = 0;

function check(good, line) {
    console.log(`${good ? "ok  " : "FAIL"} ${line}`);
    failed += good ? 0 : 1;
}

/// mulberry32: reproducible values in [0, 1).
function seeded(seed) {
    return () => {
        seed = seed + 0x6d2b79f5 | 0;
        let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
        t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
        return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
    };
}

/// Writes an adapter file as docs/FORMAT.md describes it: Kron-LoRAs with factors up to `size`.
function adapter(file, shapes, size) {
    const random = seeded(7), header = {}, data = [], layers = [];
    let end = 0;
    for (const [module, [d_out, d_in], [a_out, a_in], rank, alpha] of shapes) {
        const factors = {
            kron_a: [a_out, a_in], kron_b: [d_out / a_out, rank], kron_c: [rank, d_in / a_in],
        };
        for (const [factor, shape] of Object.entries(factors)) {
            const values = Float32Array.from({length: shape[0] * shape[1]}, () => size * (2 * random() - 1));
            header[`${module}.${factor}`] = {dtype: "F32", shape, data_offsets: [end, end += values.byteLength]};
            data.push(Buffer.from(values.buffer));
        }
        layers.push({
            module, d_out, d_in, a_out, a_in, outer: "trained", inner: {rank},
            alpha, alpha_rank: rank, rule: "alpha/r",
        });
    }
    const document = {version: 1, target_modules: [], layers};
    header.__metadata__ = {"kron-lora": JSON.stringify(document)};
    let json = Buffer.from(JSON.stringify(header));
    json = Buffer.concat([json, Buffer.alloc((8 - json.length % 8) % 8, " ")]);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(json.length));
    fs.writeFileSync(file, Buffer.concat([length, json, ...data]));
}

/// Returns the greedy tokens after the prompt, and the distributions at every place of it.
async function outputs(llama, file, lora) {
    const model = await llama.loadModel({modelPath: at(file), gpuLayers: 0});
    const context = await model.createContext({
        contextSize: 256, batchSize: 64, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        ...(lora && {lora: {adapters: [{filePath: at(lora)}]}}),
    });
    const sequence = context.getSequence(), prompt = model.tokenize(PROMPT), tokens = [];
    const options = {temperature: 1, topK: 0, topP: 1, minP: 0};
    const results = await sequence.controlledEvaluate(
        prompt.map(token => [token, {generateNext: {probabilities: true, options}}])
    );
    const all = results.map(result => result.next.probabilities);
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length === GREEDY) break;
    }
    await model.dispose();
    return {tokens, all};
}

/// Compares the fifty likeliest tokens of every place, and the greedy ones.
function compare(got, want) {
    let difference = 0, same = 0;
    want.all.forEach((probabilities, place) => {
        for (const [token, probability] of [...probabilities].sort((a, b) => b[1] - a[1]).slice(0, 50)) {
            difference = Math.max(difference, Math.abs(Math.log(got.all[place].get(token) / probability)));
        }
    });
    while (same < GREEDY && got.tokens[same] === want.tokens[same]) same++;
    return {difference, same, text: `log-probabilities differ by ${difference.toExponential(1)}, ${same} of ${GREEDY} greedy tokens are equal`};
}

/// Compares the greedy tokens of kron-train, which has no end token among them, with those of llama.cpp.
function generated(adapter, want) {
    const printed = execFileSync(kronTrain, [
        "generate", at("base.gguf"), ...(adapter ? ["--adapter", at(adapter)] : []),
        "--prompt", PROMPT, "--max-tokens", GREEDY, "--json",
    ], {stdio: ["ignore", "pipe", "ignore"]});
    const {ids, ended, prompt_tokens} = JSON.parse(printed);
    const theirs = want.tokens.slice(0, ended === "end" ? -1 : GREEDY);
    let same = 0;
    while (same < GREEDY && same < ids.length && ids[same] === theirs[same]) same++;
    const equal = same === ids.length && same === theirs.length && same > 0 && prompt_tokens === want.all.length;
    return {equal, text: `${same} of ${theirs.length} greedy tokens are equal, prompts of ${prompt_tokens} and ${want.all.length} tokens`};
}

async function models(llama) {
    // Four values of s·r, so that three are multiplied into B; A on rows that a GGUF permutes, and on others.
    const shapes = hidden => [0, 1].flatMap(block => [
        [`model.layers.${block}.self_attn.q_proj`, hidden.q, [4, 2], 8, 8],
        [`model.layers.${block}.self_attn.k_proj`, hidden.k, [2, 4], 8, 16],
        [`model.layers.${block}.self_attn.v_proj`, hidden.k, [3, 2], 4, 12],
        [`model.layers.${block}.self_attn.o_proj`, hidden.q, [1, 1], 4, 4],
        [`model.layers.${block}.mlp.down_proj`, hidden.down, [4, 4], 8, 8],
    ]);
    run("convert", model, at("hf"), "--to", "hf", "--dtype", "f16");
    const {hidden_size: hidden, head_dim, num_attention_heads, num_key_value_heads, intermediate_size} =
        JSON.parse(fs.readFileSync(at("hf/config.json")));
    const sizes = {
        q: [num_attention_heads * head_dim, hidden], k: [num_key_value_heads * head_dim, hidden],
        down: [hidden, intermediate_size],
    };
    adapter(at("random.safetensors"), shapes(sizes), 0.3);
    adapter(at("zero.safetensors"), shapes(sizes), 0);
    const merge = (adapter, out, dtype) => run("merge", model, at(`${adapter}.safetensors`), at(out), "--dtype", dtype);
    const lora = (out, dtype, base) =>
        run("convert", at("random.safetensors"), at(out), "--to", "gguf-lora", "--dtype", dtype, "--base", base);
    lora("lora.gguf", "f32", model);
    lora("half.gguf", "f16", at("hf/config.json"));
    merge("zero", "base.gguf", "f32");
    merge("random", "merged.gguf", "f32");
    const want = await outputs(llama, "merged.gguf"), base = await outputs(llama, "base.gguf");
    const without = compare(base, want);
    check(without.difference > 100 * BOUND, `the adapter changes the model: ${without.text}`);
    const adapted = await outputs(llama, "base.gguf", "lora.gguf"), exact = compare(adapted, want);
    check(exact.difference <= BOUND && exact.same === GREEDY, `base + adapter against the merged model: ${exact.text}`);
    for (const [file, theirs] of [["random.safetensors", adapted], ["lora.gguf", adapted], [null, base]]) {
        const {equal, text} = generated(file, theirs);
        check(equal, `kron-train generate, ${file ? `base + ${file}` : "base alone"}, against llama.cpp: ${text}`);
    }
    const half = compare(await outputs(llama, "base.gguf", "half.gguf"), want);
    check(half.difference < without.difference / 10, `with the adapter in float16: ${half.text}`);
    fs.rmSync(at("base.gguf"));
    merge("random", "merged16.gguf", "f16");
    const rounded = compare(await outputs(llama, "merged16.gguf"), want);
    check(rounded.difference < without.difference / 10, `the merged model in float16: ${rounded.text}`);
}

/// Texts by hand, and random ones of several kinds of characters.
function texts() {
    const own = [
        "", " ", "  ", "a", " a", "a ", "\n", "\n\n", " \n \t", "Hello, world!", "don't I'll we've they're", "DON'T",
        "1234567890", "3.14159 2,71", "１２３ ٣٤٥ ²³ ½", "x=1;y=22;z=333", "äöüß ÄÖÜ", "e\u0301 \u00e9", "日本語のテキスト。",
        "한국어 문장", "Привет, мир", "שלום עולם", "مرحبا بالعالم", "नमस्ते", "😀👍🏽👨‍👩‍👧‍👦 🇩🇪", "\u200b\u200d\ufeff", "\u00a0nbsp\u3000wide",
        "for (int i = 0; i < n; i++) {\n\treturn a[i] == b ? c : d;\n}", "fn main() -> Result<(), E> { let x = &mut y?; }",
        "def f(x):\n    return {'a': [1, 2, 3]}\n", "<html><body class=\"x\">&nbsp;</body></html>", "https://a.b/c?d=e&f=%20#g",
        "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b", "<|endoftext|>", " <|im_start|> ", "<|im_start|", "<|IM_START|>",
        "\r\n\r\n", "a\r\nb", "a\u2028b", "_ - -- ---", "!!!???...", "a  b   c    d", "    indented", "\t\ttabs", "\u0007\u001b[0m",
    ];
    const random = seeded(11), pick = all => all[Math.floor(random() * all.length)];
    const letters = [..."abcdefghijklmnopqrstuvwxyz".repeat(2) + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
    const kinds = [
        letters, [..."0123456789"], [..." \t\n\r  "], [..."!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"], [..."éüñçøåßœ"],
        [..."日本語中文한국"], [..."😀🎉👍🏽\u200d👩"], [..."٣४½²Ⅷ"], ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], ["'s", "'ll", "'T", " the", " a"],
    ];
    const fuzzed = Array.from({length: 400}, () => {
        const some = [pick(kinds), pick(kinds), letters];
        return Array.from({length: 1 + Math.floor(random() * 40)}, () => pick(pick(some))).join("");
    });
    return [...own, ...fuzzed];
}

/// Compares the tokens with and without special ones.
async function tokenizer(llama) {
    const vocabulary = await llama.loadModel({modelPath: model, gpuLayers: 0, vocabOnly: true});
    const all = texts().map(text => ({text, special: vocabulary.tokenize(text, true), plain: vocabulary.tokenize(text, false)}));
    fs.writeFileSync(at("texts.json"), JSON.stringify(all));
    if (tokensFile) {
        const lines = all.slice(0, WRITTEN).map(({text, special}) => JSON.stringify([text, special]));
        fs.writeFileSync(tokensFile, `[\n${lines.join(",\n")}\n]\n`);
    }
    const program = `
import json, sys
from tokenizers import Tokenizer
ours = Tokenizer.from_file(sys.argv[1])
texts = json.load(open(sys.argv[2]))
result = {}
for mode in ["special", "plain"]:
    ours.encode_special_tokens = mode == "plain"
    got = [ours.encode(t["text"], add_special_tokens=False).ids for t in texts]
    result[mode] = [t["text"] for t, ids in zip(texts, got) if ids != t[mode]]
print(json.dumps(result))`;
    const python = path.join(packages, "venv/bin/python");
    const printed = execFileSync(python, ["-c", program, at("hf/tokenizer.json"), at("texts.json")]);
    for (const [mode, differ] of Object.entries(JSON.parse(printed))) {
        const what = mode === "special" ? "with special tokens" : "as plain text";
        check(differ.length === 0, `tokens ${what}: ${all.length - differ.length} of ${all.length} texts are equal`);
        differ.slice(0, 5).forEach(text => console.log(`     ${JSON.stringify(text)}`));
    }
}

const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: "error"});
await models(llama);
await tokenizer(llama);
process.exit(failed ? 1 : 0);
