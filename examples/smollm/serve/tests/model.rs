//! Tests of the real model: its tokens, and its logits against those of an implementation in numpy.
//!
//! They are skipped, with a line that says so, unless the model's file is in the cache folder; the program `serve`
//! downloads it.

use serde::Deserialize;
use serving::loaded::Loaded;
use serving::model_file;
use serving::text::Message;
use smollm::batch::{Batch, GroupBatch};
use smollm::kv::KvStore;

/// Tokens of a block.
const BLOCK_SIZE: usize = 16;
/// The largest difference of a logit. Both sum in another order.
const TOLERANCE: f32 = 1e-3;

/// A prompt, the likeliest tokens after it, and the first logits at its end.
#[derive(Deserialize)]
struct Reference {
    name: String,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    smallest_gap: f32,
    first_8_logits_at_prompt_end: [f32; 8],
}

fn loaded() -> Option<Loaded> {
    let Some(path) = model_file::find_here() else {
        println!("skipped: the model's file is not in the cache folder; `serve` downloads it");
        return None;
    };
    Some(Loaded::of_file(&path).expect("a model file"))
}

/// Returns the logits after `tokens`, of which those before `start` are in the blocks already.
fn logits(loaded: &Loaded, kv: &KvStore, tokens: &[u32], start: usize) -> Vec<f32> {
    let (new, blocks) = (tokens.len() - start, tokens.len().div_ceil(BLOCK_SIZE));
    let group = GroupBatch {
        slots: (start as i64..tokens.len() as i64).collect(),
        table: (0..blocks as i32).collect(),
        stride: blocks,
        copies: Vec::new(),
        fresh: (start.div_ceil(BLOCK_SIZE) as u32..blocks as u32).collect(),
    };
    let batch = Batch {
        tokens: tokens[start..].to_vec(),
        positions: (start..tokens.len()).collect(),
        rows: vec![0; new],
        variants: vec![0; new],
        wanted: vec![new - 1],
        groups: vec![group],
    };
    let mut open = [kv.open(&batch.groups[0])];
    loaded.model.forward(&batch, &mut open).of(0).to_vec()
}

#[test]
fn tokens_and_logits_are_those_of_numpy() {
    let Some(loaded) = loaded() else { return };
    let references: Vec<Reference> =
        serde_json::from_str(include_str!("reference.json")).expect("references");
    for reference in references {
        assert!(reference.smallest_gap > 2.0 * TOLERANCE, "{}: a near tie", reference.name);
        let kv = KvStore::new(loaded.model.dims().kv_shape(0, BLOCK_SIZE), 24);
        let mut tokens = reference.prompt.clone();
        let mut after = logits(&loaded, &kv, &tokens, 0);
        let differences = after.iter().zip(reference.first_8_logits_at_prompt_end);
        let largest = differences.map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        println!("{}: largest difference of a logit {largest:.1e}", reference.name);
        assert!(largest < TOLERANCE, "{}: {largest}", reference.name);
        for (at, &expected) in reference.generated.iter().enumerate() {
            let best = (0..after.len()).max_by(|&a, &b| after[a].total_cmp(&after[b]));
            assert_eq!(best, Some(expected as usize), "{} at {at}", reference.name);
            tokens.push(expected);
            after = logits(&loaded, &kv, &tokens, tokens.len() - 1);
        }
    }
}

#[test]
fn texts_become_the_tokens_of_the_reference_and_come_back() {
    let Some(loaded) = loaded() else { return };
    let text = &loaded.text;
    let bytes = |tokens: &[u32]| tokens.iter().flat_map(|&token| text.bytes_of(token)).collect();
    let references: Vec<Reference> =
        serde_json::from_str(include_str!("reference.json")).expect("references");
    assert_eq!(text.encode("The capital of France is").unwrap(), references[0].prompt);
    let cats =
        "<|im_start|>user\nWrite one sentence about cats.<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text.encode(cats).unwrap(), references[1].prompt);
    let long: Vec<u8> = bytes(&references[2].prompt);
    assert_eq!(text.encode(&String::from_utf8(long).unwrap()).unwrap(), references[2].prompt);
    for sample in
        ["日本語と🦀", "1234 + 5 = 1239\r\n\ttabs  and   blanks", "naïve café — “quotes”", ""]
    {
        let tokens = text.encode(sample).unwrap();
        assert_eq!(String::from_utf8(bytes(&tokens)).unwrap(), sample);
    }
    assert_eq!(text.encode("12345").unwrap().len(), 5, "digits are tokens of their own");
}

#[test]
fn a_chat_begins_with_the_system_message_of_the_template() {
    let Some(loaded) = loaded() else { return };
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let prompt = |messages: &[Message]| loaded.text.prompt_of_chat(messages).unwrap();
    let question = message("user", "Why?");
    let begun = prompt(std::slice::from_ref(&question));
    assert!(begun.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"));
    assert!(
        begun.ends_with("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        "{begun}"
    );
    let next = prompt(&[question, message("assistant", "So."), message("user", "Oh.")]);
    assert!(next.starts_with(&(begun + "So.<|im_end|>\n")), "{next}");
}
