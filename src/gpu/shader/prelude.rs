//! What a shader begins with: constants of its key, bindings, and how elements are read and written.

use std::fmt::Write;

#[cfg(not(target_arch = "wasm32"))]
use super::Matrix;
use super::{Arena, Kernel, PipelineKey, Storage};
use crate::gpu::bindings::{DROPOUT, Place, Slot, places};
use crate::gpu::params::FLAGS;
use crate::gradients::EXACT_LSE;

/// The text before the sources.
pub(super) fn render(key: &PipelineKey) -> String {
    let mut text = format!("// {key}\n");
    if key.f16_out || key.matrix.is_some() {
        text.push_str("enable f16;\n");
    }
    #[cfg(not(target_arch = "wasm32"))]
    if let Some(Matrix { side, .. }) = key.matrix {
        text.push_str("enable wgpu_cooperative_matrix;\n");
        for (name, ty) in [("Left", "f16, A"), ("Right", "f16, B"), ("Sum", "f32, C")] {
            let _ = writeln!(text, "alias {name} = coop_mat{side}x{side}<{ty}>;");
        }
    }
    for (name, value) in key.constants() {
        let _ = writeln!(text, "const {name} = {value}u;");
    }
    let _ = writeln!(text, "alias Part = vec{}<f32>;", key.part());
    let _ = writeln!(text, "const POSSIBLE = {}u;", key.flags());
    for (name, bit) in FLAGS {
        let _ = writeln!(text, "const {name} = {bit}u;");
    }
    for Place { slot, number, written } in places(key.kernel) {
        let name = slot.name();
        let (space, ty) = match slot {
            Slot::Params => ("uniform", "Params".to_owned()),
            Slot::Out if key.f16_out => ("storage, read_write", "array<f16>".to_owned()),
            _ if written => ("storage, read_write", Memory::own(key, slot).array()),
            _ => ("storage, read", Memory::own(key, slot).array()),
        };
        let _ = writeln!(text, "@group(0) @binding({number}) var<{space}> {name}: {ty};");
    }
    if key.dropout {
        let _ = writeln!(text, "@group(0) @binding({DROPOUT}) var<uniform> dropout: Dropout;");
    }
    for Place { slot, written, .. } in places(key.kernel) {
        text.push_str(&access(key, slot, written));
    }
    let of_device = |place: &Place| place.slot != Slot::Params && !place.written;
    let lengths = places(key.kernel).filter(of_device);
    // Rather one that is never a caller's.
    if let Some(Place { slot, .. }) = lengths.max_by_key(|place| place.slot == Slot::Tables) {
        let name = slot.name();
        let _ =
            writeln!(text, "fn opaque_zero() -> u32 {{ return u32(arrayLength(&{name}) == 0u); }}");
    }
    if key.kernel == Kernel::RowsAgain {
        let _ = writeln!(text, "const EXACT_LSE = {EXACT_LSE:?};");
    }
    // In the backward pass the mask lies beside the tables.
    if key.kernel.is_gradient() || key.kernel == Kernel::RowsAgain {
        let word = Memory::own(key, Slot::Tables).word("at");
        let _ = writeln!(text, "fn mask_word(at: u32) -> u32 {{ return bitcast<u32>({word}); }}");
    }
    text
}

/// The functions that read or write what a kernel binds.
fn access(key: &PipelineKey, slot: Slot, written: bool) -> String {
    let memory = Memory::of(key, slot);
    match (slot, written) {
        (Slot::Q, _) => load(key, slot, ("q", "q")),
        (Slot::K, _) => load(key, slot, ("k", "k")),
        (Slot::V, _) => load(key, slot, ("v", "v")),
        (Slot::Dout, _) => load(key, slot, ("dout", "dout")),
        (Slot::Out, false) => load(key, slot, ("out", "out")),
        (Slot::Lse, false) => {
            format!("fn load_lse(at: u32) -> f32 {{ return {}; }}\n", memory.word("at"))
        }
        (Slot::Bias, _) => {
            let number = match key.storage {
                Storage::F32 => memory.float(&memory.word("at")),
                Storage::F16 => format!("unpack2x16float({})[at % 2u]", memory.word("at / 2u")),
            };
            format!("fn load_bias(at: u32) -> f32 {{ return {number}; }}\n")
        }
        (Slot::Mask, _) => {
            format!("fn mask_word(at: u32) -> u32 {{ return {}; }}\n", memory.word("at"))
        }
        (Slot::Lse, true) if key.kernel == Kernel::Forward => {
            let (word, value) = (memory.word("at"), memory.cast("x", 1));
            format!("fn store_lse(at: u32, x: f32) {{ {word} = {value}; }}\n")
        }
        (Slot::Out, true) if key.kernel == Kernel::Weights => {
            "fn store_out(at: u32, x: f32) { out_data[at] = x; }\n".to_owned()
        }
        (Slot::Out, true) => store(key),
        (Slot::Dq | Slot::Dk, _) => wide(key, slot, ("first", "out")),
        (Slot::Dv, _) => wide(key, slot, ("second", "lse")),
        (Slot::Parts, false) => {
            "fn part_word(at: u32) -> f32 { return parts_data[at]; }\n".to_owned()
        }
        (Slot::Parts, true) => {
            "fn store_word(at: u32, x: f32) { parts_data[at] = x; }\n".to_owned()
        }
        (Slot::Sums, _) => "fn load_word(at: u32) -> f32 { return sums_data[at]; }
fn store_word(at: u32, x: f32) { sums_data[at] = x; }\n"
            .to_owned(),
        (Slot::Params | Slot::Tables | Slot::Lse | Slot::From, _) => String::new(),
    }
}

/// A result in f32 that is written and added to, by its name and that of its view.
fn wide(key: &PipelineKey, slot: Slot, (name, view): (&str, &str)) -> String {
    let key = PipelineKey { storage: Storage::F32, ..*key };
    let memory = Memory::own(&key, slot);
    let body = match key.vec4 {
        true => memory.write("at", "x", 4),
        false => singles(&memory.word(&format!("at + i * params.{view}.feature")), "x[i]"),
    };
    load(&key, slot, (name, view))
        + &format!("fn store_{name}(at: u32, valid: u32, x: vec4<f32>) {{\n{body}}}\n")
}

/// Statements that write one feature after the other, and no loop.
fn singles(place: &str, value: &str) -> String {
    let single = |i| {
        format!(
            "    if valid > {i}u {{\n        let i = {i}u;\n        {place} = {value};\n    }}\n"
        )
    };
    (0..4).map(single).collect()
}

/// A binding, read or written as words of 32 bits.
struct Memory {
    name: &'static str,
    /// Whether words are floats; bits otherwise.
    floats: bool,
    /// Words of an element of the array: 1, 2 or 4.
    width: u32,
}

impl Memory {
    /// Where a kernel finds a tensor.
    fn of(key: &PipelineKey, slot: Slot) -> Self {
        Self::own(key, if key.arena.holds(slot) { Slot::Out } else { slot })
    }

    /// A binding.
    fn own(key: &PipelineKey, slot: Slot) -> Self {
        let name = slot.name();
        let single = |floats| Self { name, floats, width: 1 };
        let shared = key.arena != Arena::NONE;
        match slot {
            Slot::Mask => single(false),
            Slot::Lse | Slot::Parts | Slot::Sums => single(true),
            Slot::Tables | Slot::From => Self { name, floats: true, width: 4 },
            Slot::Dq | Slot::Dk | Slot::Dv => {
                Self { name, floats: true, width: if key.vec4 { 4 } else { 1 } }
            }
            Slot::Out if key.kernel == Kernel::Weights => single(true),
            Slot::Bias => single(key.storage == Storage::F32),
            // Threads that write neighbouring words must not write one vector; and single words may
            // end before a whole vector does.
            Slot::Out
                if [Slot::Lse, Slot::Bias, Slot::Mask].iter().any(|s| key.arena.holds(*s)) =>
            {
                single(false)
            }
            _ => {
                // Two f16 in a word: no feature of the device is needed. Bits in a shared buffer:
                // not all of it are floats.
                let floats = key.storage == Storage::F32 && !(shared && slot == Slot::Out);
                let width = match (key.vec4, key.storage) {
                    (true, Storage::F32) => 4,
                    (true, Storage::F16) => 2,
                    (false, _) => 1,
                };
                Self { name, floats, width }
            }
        }
    }

    fn array(&self) -> String {
        let word = if self.floats { "f32" } else { "u32" };
        match self.width {
            1 => format!("array<{word}>"),
            n => format!("array<vec{n}<{word}>>"),
        }
    }

    /// The word of a number.
    fn word(&self, at: &str) -> String {
        match self.width {
            1 => format!("{}[{at}]", self.name),
            n => format!("{}[({at}) / {n}u][({at}) % {n}u]", self.name),
        }
    }

    /// `n` words from a multiple of `n` on.
    fn words(&self, at: &str, n: u32) -> String {
        if self.width == n {
            return format!("{}[({at}) / {n}u]", self.name);
        }
        let ty = if self.floats { "f32" } else { "u32" };
        let each: Vec<_> = (0..n).map(|i| self.word(&format!("{at} + {i}u"))).collect();
        format!("vec{n}<{ty}>({})", each.join(", "))
    }

    /// Words as a float.
    fn float(&self, words: &str) -> String {
        if self.floats { words.to_owned() } else { format!("bitcast<f32>({words})") }
    }

    /// `n` floats as words.
    fn cast(&self, floats: &str, n: u32) -> String {
        match (self.floats, n) {
            (true, _) => floats.to_owned(),
            (false, 1) => format!("bitcast<u32>({floats})"),
            (false, n) => format!("bitcast<vec{n}<u32>>({floats})"),
        }
    }

    /// Statements that write `n` words from a multiple of `n` on.
    fn write(&self, at: &str, words: &str, n: u32) -> String {
        if self.width == n {
            return format!("    {}[({at}) / {n}u] = {words};\n", self.name);
        }
        let each =
            (0..n).map(|i| format!("    {} = words[{i}];\n", self.word(&format!("{at} + {i}u"))));
        format!("    let words = {words};\n") + &each.collect::<String>()
    }
}

/// Four neighbouring features from element `at` on, of which `valid` are there.
fn load(key: &PipelineKey, slot: Slot, (name, view): (&str, &str)) -> String {
    let memory = Memory::of(key, slot);
    let body = match (key.vec4, key.storage) {
        (true, Storage::F32) => {
            let words = memory.words("at", 4);
            match memory.floats {
                true => format!("    return {words};\n"),
                false => format!("    return bitcast<vec4<f32>>({words});\n"),
            }
        }
        (true, Storage::F16) => format!(
            "    let words = {};\n    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));\n",
            memory.words("at / 2u", 2)
        ),
        (false, storage) => {
            let element = match storage {
                Storage::F32 => memory.float(&memory.word("e")),
                Storage::F16 => format!("unpack2x16float({})[e % 2u]", memory.word("e / 2u")),
            };
            // No loop: some adapters count the turns of all loops, and end them.
            let mut body =
                format!("    var x = vec4<f32>(0.0);\n    var e = at;\n    x.x = {element};\n");
            for i in 1..4 {
                let _ = writeln!(
                    body,
                    "    if valid > {i}u {{\n        e += params.{view}.feature;\n        x[{i}] = {element};\n    }}"
                );
            }
            body + "    return x;\n"
        }
    };
    format!("fn load_{name}(at: u32, valid: u32) -> vec4<f32> {{\n{body}}}\n")
}

/// Writes four neighbouring features.
fn store(key: &PipelineKey) -> String {
    let out = Memory::own(key, Slot::Out);
    let body = match (key.vec4, key.storage) {
        _ if key.f16_out => singles("out_data[at + i * params.out.feature]", "f16(x[i])"),
        (true, Storage::F32) => out.write("at", &out.cast("x", 4), 4),
        (true, Storage::F16) => {
            out.write("at / 2u", "vec2<u32>(pack2x16float(x.xy), pack2x16float(x.zw))", 2)
        }
        (false, Storage::F32) => {
            singles(&out.word("at + i * params.out.feature"), &out.cast("x[i]", 1))
        }
        // Rows are an even number of elements apart: a word belongs to one row, and to one thread.
        // The half past the last feature is not ours.
        (false, Storage::F16) => "    for (var i = 0u; i < min(valid, 4u); i += 2u) {
        let word = at / 2u + i / 2u;
        let pair = pack2x16float(vec2<f32>(x[i], x[i + 1u]));
        if i + 1u < valid {
            out_data[word] = pair;
        } else {
            out_data[word] = (out_data[word] & 0xffff0000u) | (pair & 0xffffu);
        }
    }
"
        .to_owned(),
    };
    format!("fn store_out(at: u32, valid: u32, x: vec4<f32>) {{\n{body}}}\n")
}
