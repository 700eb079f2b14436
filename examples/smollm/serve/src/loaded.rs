//! `Loaded`: a model that is ready to serve: its weights, its texts, and its limits.

use std::io;
use std::path::Path;

use smollm::gguf::Gguf;
use smollm::model::Model;
use smollm::panel::Split;
use smollm::seeded;

use crate::text::Text;

/// Most tokens of a sequence of the seeded model.
const SEEDED_CONTEXT: usize = 4096;
/// The seed of the seeded model's weights.
const SEED: u64 = 7;

/// A model and its texts.
pub struct Loaded {
    /// The name that clients use.
    pub name: String,
    /// The model.
    pub model: Model,
    /// Its texts.
    pub text: Text,
    /// Most tokens of a sequence.
    pub context_len: usize,
    /// The token that ends an answer.
    pub end: Option<u32>,
}

impl Loaded {
    /// Makes a small model whose weights come from a seed. It needs no file; its answers mean nothing.
    pub fn seeded() -> Self {
        let weights = seeded::weights(&seeded::small(), SEED);
        let count = weights.dims.vocab as u32;
        Self {
            name: "seeded".to_owned(),
            model: Model::new(&weights, Split::None),
            text: Text::Letters { count },
            context_len: SEEDED_CONTEXT,
            end: None,
        }
    }

    /// Reads a model file.
    ///
    /// # Errors
    /// The file cannot be read, or has another kind of model.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let gguf = Gguf::open(path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            // The kind of the weights follows the first dot.
            name: file.split('.').next().unwrap_or_default().to_owned(),
            model: Model::of(gguf.packed()?, Split::Rayon),
            text: Text::of_file(&gguf)?,
            context_len: gguf.context_len()?,
            end: u32::try_from(gguf.integer("tokenizer.ggml.eos_token_id")?).ok(),
        })
    }
}
