//! `Text`: the texts of a model: tokens of a text, bytes of a token, and the template of a chat.

use std::io;

use minijinja::{Environment, context};
use serde::Serialize;
use smollm::gguf::{Gguf, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

/// GGUF's number for a token that is no text.
const CONTROL: i64 = 3;
/// The first letter of the seeded model's alphabet: a blank.
const FIRST_LETTER: u32 = 0x20;
/// The name of the template in its environment.
const TEMPLATE: &str = "chat";

/// One message of a chat.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// The texts of a model.
pub enum Text {
    /// Byte-pair encoding, from a model file.
    BytePairs(Box<BytePairs>),
    /// A letter a token, for the seeded model.
    Letters {
        /// Number of letters.
        count: u32,
    },
}

/// A tokenizer, the bytes of its tokens, and a chat template.
pub struct BytePairs {
    tokenizer: Tokenizer,
    /// No bytes for a control token.
    bytes: Vec<Vec<u8>>,
    template: Environment<'static>,
}

impl Text {
    /// Reads the tokenizer and the template of a model file.
    ///
    /// # Errors
    /// The file has none, or has those of another kind of model.
    pub fn of_file(gguf: &Gguf) -> io::Result<Self> {
        let tokens = texts(gguf.list("tokenizer.ggml.tokens")?)?;
        let merges = texts(gguf.list("tokenizer.ggml.merges")?)?;
        let kinds = gguf.list("tokenizer.ggml.token_type")?;
        let is_control = |id: usize| kinds.get(id) == Some(&Value::Integer(CONTROL));
        let pair = |merge: &String| {
            let (left, right) = merge.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        };
        let merges = merges.iter().map(pair).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| io::Error::other("a merge is no pair"))?;
        let vocabulary = (0..).zip(&tokens).map(|(id, token)| (token.clone(), id));
        let vocabulary: Vec<(String, u32)> = vocabulary.collect();
        let model = BPE::builder().vocab_and_merges(Vocabulary::from_iter(vocabulary), merges);
        let mut tokenizer = Tokenizer::new(model.build().map_err(io::Error::other)?);
        let parts = vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
        let control = (0..tokens.len()).filter(|&id| is_control(id));
        let control = control.map(|id| AddedToken::from(tokens[id].clone(), true));
        tokenizer.add_special_tokens(control).map_err(io::Error::other)?;
        let bytes = (0..tokens.len()).map(|id| match is_control(id) {
            true => Some(Vec::new()),
            false => tokens[id].chars().map(byte_of).collect(),
        });
        let bytes = bytes.collect::<Option<Vec<_>>>();
        let bytes = bytes.ok_or_else(|| io::Error::other("a token is no text of bytes"))?;
        let mut template = Environment::new();
        let source = gguf.text("tokenizer.chat_template")?.to_owned();
        template.add_template_owned(TEMPLATE, source).map_err(io::Error::other)?;
        Ok(Self::BytePairs(Box::new(BytePairs { tokenizer, bytes, template })))
    }

    /// Returns the tokens of a text.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> io::Result<Vec<u32>> {
        match self {
            Self::BytePairs(pairs) => {
                let encoding = pairs.tokenizer.encode_fast(text, false);
                Ok(encoding.map_err(io::Error::other)?.get_ids().to_vec())
            }
            &Self::Letters { count } => {
                let token = |c: char| (c as u32).wrapping_sub(FIRST_LETTER) % count;
                Ok(text.chars().map(token).collect())
            }
        }
    }

    /// Returns the bytes of a token. Several tokens may have the bytes of one character.
    pub fn bytes_of(&self, token: u32) -> Vec<u8> {
        match self {
            Self::BytePairs(pairs) => pairs.bytes[token as usize].clone(),
            Self::Letters { .. } => vec![(FIRST_LETTER + token) as u8],
        }
    }

    /// Returns the prompt of a chat, up to the place where the answer begins.
    ///
    /// # Errors
    /// The template refuses the messages.
    pub fn prompt_of_chat(&self, messages: &[Message]) -> io::Result<String> {
        match self {
            Self::BytePairs(pairs) => {
                let template = pairs.template.get_template(TEMPLATE).map_err(io::Error::other)?;
                let values = context! { messages, add_generation_prompt => true };
                template.render(values).map_err(io::Error::other)
            }
            Self::Letters { .. } => {
                let line = |message: &Message| format!("{}:{}\n", message.role, message.content);
                Ok(messages.iter().map(line).collect::<String>() + "assistant:")
            }
        }
    }
}

/// The form in which the tokenizer takes a vocabulary.
type Vocabulary = tokenizers::models::bpe::Vocab;

fn texts(values: &[Value]) -> io::Result<Vec<String>> {
    let text = |value: &Value| match value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(io::Error::other(format!("{other:?} is no text"))),
    };
    values.iter().map(text).collect()
}

/// Returns the byte that a character of a token stands for, in GPT-2's alphabet of 256 printable characters.
fn byte_of(c: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match c as u32 {
        code @ 0..256 => Some(code as u8).filter(|&byte| is_itself(byte)),
        code => (0..=255).filter(|&byte| !is_itself(byte)).nth(code as usize - 256),
    }
}

#[test]
fn each_byte_has_a_character() {
    let alphabet: std::collections::BTreeSet<u8> =
        (0..400).filter_map(char::from_u32).filter_map(byte_of).collect();
    assert_eq!(alphabet.len(), 256);
    assert_eq!(['A', '\u{120}', '\u{10A}'].map(byte_of), [Some(b'A'), Some(b' '), Some(b'\n')]);
}
