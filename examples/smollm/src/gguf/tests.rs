//! Tests of `Gguf` on small files.

use super::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn file() -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(1_u64.to_le_bytes());
    out.extend(2_u64.to_le_bytes());
    text(&mut out, "name");
    out.extend(8_u32.to_le_bytes());
    text(&mut out, "small");
    text(&mut out, "numbers");
    [9_u32, 4].iter().for_each(|kind| out.extend(kind.to_le_bytes()));
    out.extend(2_u64.to_le_bytes());
    [7_u32, 8].iter().for_each(|number| out.extend(number.to_le_bytes()));
    text(&mut out, "norm");
    out.extend(1_u32.to_le_bytes());
    out.extend(2_u64.to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    out.extend(0_u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32), 0);
    [1.5_f32, -2.0].iter().for_each(|number| out.extend(number.to_le_bytes()));
    out
}

#[test]
fn values_and_tensors_are_read() {
    let gguf = Gguf::read(file()).expect("a file");
    assert_eq!(gguf.text("name").unwrap(), "small");
    assert_eq!(gguf.list("numbers").unwrap(), [Value::Integer(7), Value::Integer(8)]);
    assert_eq!(gguf.tensors["norm"].shape, [2]);
    assert_eq!(gguf.bytes[gguf.data..][..4], 1.5_f32.to_le_bytes());
    assert!(gguf.integer("name").is_err() && gguf.number("other").is_err());
}

#[test]
fn a_file_that_ends_early_is_refused_at_every_length() {
    let whole = file();
    let head = Gguf::read(whole.clone()).unwrap().data - 8;
    for len in 0..head - 24 {
        assert!(Gguf::read(whole[..len].to_vec()).is_err(), "{len} bytes");
    }
    assert!(Gguf::read(b"GGUF\x02\0\0\0".to_vec()).is_err());
}
