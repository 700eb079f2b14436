//! Decoding of batches: the events of a payload, in either dialect.

use rmp::Marker;
use rmp::decode::{
    read_array_len, read_f64, read_int, read_map_len, read_marker, read_str_from_slice,
};

/// An event as a router reads it.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Stored {
        hashes: Vec<u64>,
        parent: Option<u64>,
        tokens: Vec<u32>,
        block_size: usize,
        group: Group,
    },
    Removed(Vec<u64>, Option<u64>),
    Cleared,
}

/// The group of stored blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub index: Option<u64>,
    pub kind: String,
    pub window: Option<u64>,
}

/// Returns the events of a payload, all of the device.
pub fn events(payload: &[u8]) -> Vec<Event> {
    let of_device = |(medium, event)| {
        let is_cleared = event == Event::Cleared;
        assert_eq!(medium, if is_cleared { "" } else { "GPU" });
        event
    };
    events_of_media(payload).into_iter().map(of_device).collect()
}

/// Returns the events of a payload, each with its medium, which is empty for one of all media.
pub fn events_of_media(payload: &[u8]) -> Vec<(String, Event)> {
    let mut rest = payload;
    assert_eq!(read_array_len(&mut rest).unwrap(), 3);
    assert!(read_f64(&mut rest).unwrap() > 1e9, "seconds since 1970");
    let count = read_array_len(&mut rest).unwrap();
    let events = (0..count).map(|_| event(&mut rest)).collect();
    assert_eq!(read_int::<i32, _>(&mut rest).unwrap(), 0);
    assert!(rest.is_empty(), "nothing behind the rank");
    events
}

fn event(rest: &mut &[u8]) -> (String, Event) {
    let mut look = *rest;
    match read_marker(&mut look).unwrap() {
        Marker::FixMap(_) => map(rest),
        _ => array(rest),
    }
}

fn map(rest: &mut &[u8]) -> (String, Event) {
    let fields = read_map_len(rest).unwrap();
    assert_eq!(string(rest), "type");
    let kind = string(rest);
    let (mut hashes, mut parent, mut tokens, mut block_size) = (Vec::new(), None, Vec::new(), 0);
    let mut group = Group { index: None, kind: String::new(), window: None };
    let mut medium = String::new();
    for _ in 1..fields {
        match &*string(rest) {
            "block_hashes" => hashes = list(rest),
            "parent_block_hash" => parent = optional(rest),
            "token_ids" => tokens = list(rest),
            "block_size" => block_size = read_int(rest).unwrap(),
            "lora_id" | "lora_name" => assert_eq!(optional(rest), None),
            "group_idx" => group.index = optional(rest),
            "medium" => medium = string(rest),
            "kv_cache_spec_kind" => group.kind = string(rest),
            "kv_cache_spec_sliding_window" => group.window = optional(rest),
            other => panic!("no field {other}"),
        }
    }
    let event = match &*kind {
        "BlockStored" => Event::Stored { hashes, parent, tokens, block_size, group },
        "BlockRemoved" => Event::Removed(hashes, group.index),
        "AllBlocksCleared" => Event::Cleared,
        other => panic!("no event {other}"),
    };
    (medium, event)
}

fn array(rest: &mut &[u8]) -> (String, Event) {
    let fields = read_array_len(rest).unwrap();
    match (&*string(rest), fields) {
        ("BlockStored", 12) => {
            let (hashes, parent, tokens) = (list(rest), optional(rest), list(rest));
            let block_size = read_int(rest).unwrap();
            assert_eq!(optional(rest), None);
            let medium = string(rest);
            assert_eq!((optional(rest), optional(rest)), (None, None));
            let (index, kind, window) = (optional(rest), string(rest), optional(rest));
            let group = Group { index, kind, window };
            (medium, Event::Stored { hashes, parent, tokens, block_size, group })
        }
        ("BlockRemoved", 4) => {
            let (hashes, medium) = (list(rest), string(rest));
            (medium, Event::Removed(hashes, optional(rest)))
        }
        ("AllBlocksCleared", 1) => (String::new(), Event::Cleared),
        (other, fields) => panic!("no event {other} of {fields} fields"),
    }
}

fn list<T: rmp_int::Int>(rest: &mut &[u8]) -> Vec<T> {
    let len = read_array_len(rest).unwrap();
    (0..len).map(|_| T::read(rest)).collect()
}

fn optional(rest: &mut &[u8]) -> Option<u64> {
    if rest[0] == 0xc0 {
        *rest = &rest[1..];
        return None;
    }
    Some(read_int(rest).unwrap())
}

fn string(rest: &mut &[u8]) -> String {
    let (text, behind) = read_str_from_slice(*rest).unwrap();
    *rest = behind;
    text.to_owned()
}

/// Reads integers in their own encoding.
mod rmp_int {
    pub trait Int {
        fn read(rest: &mut &[u8]) -> Self;
    }

    impl Int for u64 {
        fn read(rest: &mut &[u8]) -> Self {
            rmp::decode::read_u64(rest).expect("hashes have the 9-byte form")
        }
    }

    impl Int for u32 {
        fn read(rest: &mut &[u8]) -> Self {
            rmp::decode::read_int(rest).unwrap()
        }
    }
}
