//! The weights of a llama model in a GGUF file: `F32`, `Q4_1` and `Q8_0` tensors.

use std::io;

use super::{Gguf, Tensor, invalid};
use crate::dims::Dims;
use crate::packed::{Embedding, Packed, PackedLayer};
use crate::panel::Panels;
use crate::quant::{Q4_1, Q8_0, QUANTS};
use crate::wide::LANES;

/// The kinds of numbers that are read.
const F32: u32 = 0;
const Q4_1_KIND: u32 = 3;
const Q8_0_KIND: u32 = 8;

impl Gguf {
    /// Returns the shape of the model.
    ///
    /// # Errors
    /// The file has no model of the architecture llama.
    pub fn dims(&self) -> io::Result<Dims> {
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            return Err(invalid(&format!("architecture {architecture}, not llama")));
        }
        let width = self.integer("llama.embedding_length")?;
        let heads = self.integer("llama.attention.head_count")?;
        let layers = self.integer("llama.block_count")?;
        Ok(Dims {
            width,
            heads,
            kv_heads: self.integer("llama.attention.head_count_kv")?,
            head_dim: width.checked_div(heads).ok_or_else(|| invalid("0 heads"))?,
            ffn: self.integer("llama.feed_forward_length")?,
            vocab: self.list("tokenizer.ggml.tokens")?.len(),
            rope_base: self.number("llama.rope.freq_base")? as f32,
            eps: self.number("llama.attention.layer_norm_rms_epsilon")? as f32,
            windows: vec![None; layers],
        })
    }

    /// Returns the most tokens of a sequence.
    ///
    /// # Errors
    /// The file does not say it.
    pub fn context_len(&self) -> io::Result<usize> {
        self.integer("llama.context_length")
    }

    /// Packs the weights.
    ///
    /// # Errors
    /// A tensor is missing, or has another kind or shape.
    pub fn packed(&self) -> io::Result<Packed> {
        let dims = self.dims()?;
        let rows = self.q8_0("token_embd.weight", dims.width)?;
        let layer = |number: usize| {
            let name = |part: &str| format!("blk.{number}.{part}.weight");
            let matrix = |parts: &[&str], ins| {
                let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
                self.q4_1(&names, ins)
            };
            Ok(PackedLayer {
                attention_norm: self.numbers(&name("attn_norm"), dims.width)?,
                qkv: matrix(&["attn_q", "attn_k", "attn_v"], dims.width)?,
                out: matrix(&["attn_output"], dims.query_len())?,
                ffn_norm: self.numbers(&name("ffn_norm"), dims.width)?,
                gate_up: matrix(&["ffn_gate", "ffn_up"], dims.width)?,
                down: matrix(&["ffn_down"], dims.ffn)?,
            })
        };
        let layers = (0..dims.windows.len()).map(layer).collect::<io::Result<_>>()?;
        let norm = self.numbers("output_norm.weight", dims.width)?;
        let head = Panels::pack_q8_0(&rows);
        Ok(Packed { dims, embedding: Embedding::Q8_0(rows), layers, norm, head })
    }

    fn numbers(&self, name: &str, len: usize) -> io::Result<Vec<f32>> {
        let (tensor, bytes) = self.tensor(name, F32, 1, 4)?;
        if tensor.shape != [len as u64] {
            return Err(invalid(&format!("{name}: shape {:?}, not {len}", tensor.shape)));
        }
        let (numbers, _) = bytes.as_chunks();
        Ok(numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    /// Packs the rows of several matrices as one.
    fn q4_1(&self, names: &[String], ins: usize) -> io::Result<Panels> {
        let mut rows: Vec<Vec<Q4_1>> = Vec::new();
        for name in names {
            let (tensor, bytes) = self.tensor(name, Q4_1_KIND, QUANTS, Q4_1::BYTES)?;
            self.check_rows(name, tensor, ins)?;
            let row = bytes.chunks_exact(ins / QUANTS * Q4_1::BYTES);
            rows.extend(row.map(|row| row.chunks_exact(Q4_1::BYTES).map(Q4_1::read).collect()));
        }
        Ok(Panels::pack_q4_1(&rows))
    }

    fn q8_0(&self, name: &str, ins: usize) -> io::Result<Vec<Vec<Q8_0>>> {
        let (tensor, bytes) = self.tensor(name, Q8_0_KIND, QUANTS, Q8_0::BYTES)?;
        self.check_rows(name, tensor, ins)?;
        let rows = bytes.chunks_exact(ins / QUANTS * Q8_0::BYTES);
        Ok(rows.map(|row| row.chunks_exact(Q8_0::BYTES).map(Q8_0::read).collect()).collect())
    }

    fn check_rows(&self, name: &str, tensor: &Tensor, ins: usize) -> io::Result<()> {
        match *tensor.shape {
            [of_row, outs]
                if of_row == ins as u64
                    && ins.is_multiple_of(QUANTS)
                    && outs > 0
                    && outs.is_multiple_of(LANES as u64) =>
            {
                Ok(())
            }
            _ => Err(invalid(&format!("{name}: shape {:?}, not [{ins}, ..]", tensor.shape))),
        }
    }

    /// Returns a tensor and its bytes. `bytes` bytes have `len` numbers.
    fn tensor(
        &self,
        name: &str,
        kind: u32,
        len: usize,
        bytes: usize,
    ) -> io::Result<(&Tensor, &[u8])> {
        let tensor = self.tensors.get(name).filter(|tensor| tensor.kind == kind);
        let tensor = tensor.ok_or_else(|| invalid(&format!("{name}: no tensor of kind {kind}")))?;
        let numbers = tensor.shape.iter().try_fold(1, |len: u64, &next| len.checked_mul(next));
        let size = numbers.and_then(|numbers| (numbers / len as u64).checked_mul(bytes as u64));
        let start = (self.data as u64).checked_add(tensor.start);
        let place = start.zip(size).and_then(|(start, size)| {
            self.bytes.get(start as usize..start.checked_add(size)? as usize)
        });
        Ok((tensor, place.ok_or_else(|| invalid(&format!("{name}: outside the file")))?))
    }
}
