//! Tests of `WireFormat`: payloads byte for byte.

use super::super::notes::Notes;
use super::super::samples::{self, FULL, in_tier, of_group, removed};
use super::*;
use crate::prefix::kv_event::KvEvent;

const HASHES: [u64; 2] = [0xfedc_ba98_7654_3210, 0x0123_4567_89ab_cdef];

fn payload(dialect: Dialect, event: &KvEvent<'_>) -> String {
    payload_with(dialect, event, true)
}

fn payload_with(dialect: Dialect, event: &KvEvent<'_>, salts: bool) -> String {
    let media = PublishedMedia::default();
    let format = WireFormat { dialect, media, rank: 0, salts, groups: None };
    let (mut notes, mut bytes) = (Notes::default(), Vec::new());
    assert!(notes.push(event, format.salts));
    WireFormat::write_start(1.5, 1, &mut bytes);
    notes.write(&format, &mut bytes);
    format.write_end(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hashes() -> [BlockHash; 2] {
    HASHES.map(|hash| BlockHash::from_u128(hash.into()))
}

fn stored(hashes: &[BlockHash]) -> KvEvent<'_> {
    samples::stored(hashes, &[1, 2, 3, 4, 5, 6, 7, 300])
}

#[test]
fn arrays_are_vllms() {
    let hashes = hashes();
    assert_eq!(
        payload(Dialect::Array, &stored(&hashes)),
        "93cb3ff8000000000000919cab426c6f636b53746f72656492cffedcba9876543210cf0123456789abcdef\
         c09801020304050607cd012c04c0a3475055c0c000ae66756c6c5f617474656e74696f6ec000"
    );
    assert_eq!(
        payload(Dialect::Array, &removed(&hashes[..1])),
        "93cb3ff80000000000009194ac426c6f636b52656d6f76656491cffedcba9876543210a3475055c000"
    );
}

/// Encoded by msgspec, from the fields of vLLM's classes.
#[test]
fn events_of_groups_are_vllms() {
    let hashes = hashes();
    let window = LayerGroup::SlidingWindow { block_size: 4, window: 1_024 };
    let stored = |id, kind| of_group(stored(&hashes), GroupId(id), kind);
    let removed = of_group(removed(&hashes[..1]), GroupId(1), window);
    let start = "93cb3ff8000000000000919cab426c6f636b53746f72656492cffedcba9876543210\
                 cf0123456789abcdefc09801020304050607cd012c04c0a3475055c0c0";
    assert_eq!(
        payload(Dialect::Array, &stored(1, window)),
        format!("{start}01ae736c6964696e675f77696e646f77cd040000")
    );
    assert_eq!(
        payload(Dialect::Array, &stored(2, LayerGroup::State { block_size: 4 })),
        format!("{start}02a56d616d6261c000")
    );
    assert_eq!(
        payload(Dialect::Array, &removed),
        "93cb3ff80000000000009194ac426c6f636b52656d6f76656491cffedcba9876543210a34750550100"
    );
    let start = |fields| {
        format!(
            "93cb3ff800000000000091{fields}a474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865\
             7392cffedcba9876543210cf0123456789abcdefb1706172656e745f626c6f636b5f68617368c0a9746f6b65\
             6e5f6964739801020304050607cd012caa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756d\
             a3475055a96c6f72615f6e616d65c0a967726f75705f696478"
        )
    };
    assert_eq!(
        payload(Dialect::Map, &stored(1, window)),
        start("8b")
            + "01b26b765f63616368655f737065635f6b696e64ae736c6964696e675f77696e646f77bc6b765f6361\
               6368655f737065635f736c6964696e675f77696e646f77cd040000"
    );
    assert_eq!(
        payload(Dialect::Map, &stored(2, LayerGroup::State { block_size: 4 })),
        start("8a") + "02b26b765f63616368655f737065635f6b696e64a56d616d626100"
    );
    assert_eq!(
        payload(Dialect::Map, &removed),
        "93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391\
         cffedcba9876543210a66d656469756da3475055a967726f75705f6964780100"
    );
}

/// A removal that names no group would remove the content of group 0 from a consumer's index.
#[test]
fn removals_by_position_name_each_group_but_a_first_of_full_attention() {
    let hashes = hashes();
    let window = LayerGroup::SlidingWindow { block_size: 4, window: 9 };
    for (id, kind, end) in [(0, FULL, "c000"), (0, window, "0000"), (1, FULL, "0100")] {
        let removed = of_group(removed(&hashes), GroupId(id), kind);
        assert!(payload(Dialect::Array, &removed).ends_with(end), "{id} {kind:?}");
    }
}

#[test]
fn maps_are_vllms() {
    let hashes = hashes();
    assert_eq!(
        payload(Dialect::Map, &removed(&hashes[..1])),
        "93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391\
         cffedcba9876543210a66d656469756da3475055a967726f75705f6964780000"
    );
    assert_eq!(
        payload(Dialect::Map, &KvEvent::AllBlocksCleared),
        "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400"
    );
}

/// Encoded by msgspec, from the fields of vLLM's classes.
#[test]
fn events_of_tiers_are_vllms() {
    let hashes = hashes();
    let stored = in_tier(stored(&hashes), Medium::Host);
    let removed = in_tier(removed(&hashes[..1]), Medium::Disk);
    assert_eq!(
        payload(Dialect::Array, &stored),
        "93cb3ff8000000000000919cab426c6f636b53746f72656492cffedcba9876543210cf0123456789abcdef\
         c09004c0a3435055c0c000ae66756c6c5f617474656e74696f6ec000"
    );
    assert_eq!(
        payload(Dialect::Array, &removed),
        "93cb3ff80000000000009194ac426c6f636b52656d6f76656491cffedcba9876543210a44449534bc000"
    );
    assert_eq!(
        payload(Dialect::Map, &stored),
        "93cb3ff8000000000000918aa474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cf\
         fedcba9876543210cf0123456789abcdefb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f69\
         647390aa626c6f636b5f73697a6504a76c6f72615f6964c0a66d656469756da3435055a96c6f72615f6e616d\
         65c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74\
         696f6e00"
    );
    assert_eq!(
        payload(Dialect::Map, &removed),
        "93cb3ff80000000000009184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391\
         cffedcba9876543210a66d656469756da44449534ba967726f75705f6964780000"
    );
}

#[test]
fn media_have_the_names_that_they_are_given() {
    let hashes = hashes();
    let mut media = PublishedMedia::default();
    media.set_name(Medium::Disk, "STORAGE".to_owned());
    media.set_name(Medium::Device, "XPU".to_owned());
    for (of, name) in [(Medium::Device, "XPU"), (Medium::Host, "CPU"), (Medium::Disk, "STORAGE")] {
        assert_eq!(media.name(of), name);
        let is_sent = |media: &PublishedMedia| media.contain(&in_tier(removed(&hashes), of));
        assert_eq!(is_sent(&media), of == Medium::Device);
        media.tiers = true;
        assert!(is_sent(&media));
        media.tiers = false;
    }
    assert!(media.contain(&KvEvent::AllBlocksCleared));
}

#[test]
fn a_hash_of_0_is_written_as_1_and_in_9_bytes() {
    let hashes = [BlockHash::from_u128(1 << 64)];
    let written = payload(Dialect::Array, &removed(&hashes));
    assert!(written.contains("91cf0000000000000001"), "{written}");
}

#[test]
fn tokens_are_written_in_their_shortest_forms() {
    let each = [0, 127, 128, 255, 256, 65_535, 65_536, u32::MAX];
    let in_threes: Vec<_> = (256..).step_by(97).take(3 * TOGETHER).collect();
    let in_fives: Vec<_> = (65_536..).step_by(9_973).take(2 * TOGETHER).collect();
    let around: Vec<_> = (65_536 - 20..65_536 + 20).chain(240..280).collect();
    let mixed = [&in_threes[..], &in_fives, &each, &around, &in_threes].concat();
    for tokens in [&each[..], &in_threes, &in_fives, &around, &mixed, &[]] {
        let (mut want, mut written) = (Vec::new(), Vec::new());
        write_array_len(&mut want, tokens.len() as u32).unwrap();
        tokens.iter().for_each(|&token| {
            write_uint(&mut want, token.into()).unwrap();
        });
        write_tokens(&mut written, tokens).unwrap();
        assert_eq!(written, want);
    }
}

#[test]
fn salt_and_media_are_told_of_the_blocks_they_concern() {
    let extra = ExtraKeys::default().media("cat", 3..6).salt("s");
    let hashes = hashes();
    let KvEvent::BlockStored { parent, tokens, block_size, .. } = stored(&hashes) else {
        unreachable!()
    };
    let event = |index| KvEvent::BlockStored {
        hashes: &hashes,
        parent,
        tokens,
        block_size,
        extra: Some(&extra),
        index,
        group: GroupId(0),
        kind: FULL,
        medium: Medium::Device,
    };
    let first = payload(Dialect::Array, &event(0));
    // [[["cat", 3], "s"], [["cat", -1]]]
    assert!(first.contains("929292a363617403a1739192a3636174ff"), "{first}");
    assert!(payload(Dialect::Array, &event(7)).contains("92c0c000ae"));
    let mapped = payload(Dialect::Map, &event(0));
    assert!(mapped.contains("aa65787472615f6b657973929292a363617403"), "extra_keys: {mapped}");
}

#[test]
fn salts_are_left_out_where_they_are_not_published() {
    let hashes = hashes();
    let written = |extra: &ExtraKeys, dialect, salts| {
        let KvEvent::BlockStored { parent, tokens, block_size, .. } = stored(&hashes) else {
            unreachable!()
        };
        let (hashes, extra) = (&hashes, Some(extra));
        let event = KvEvent::BlockStored {
            hashes,
            parent,
            tokens,
            block_size,
            extra,
            index: 0,
            group: GroupId(0),
            kind: FULL,
            medium: Medium::Device,
        };
        payload_with(dialect, &event, salts)
    };
    let none = ExtraKeys::default();
    for without in [none.clone().media("cat", 3..6), none.clone().lora("l", "/l"), none] {
        let salted = without.clone().salt("s");
        for dialect in [Dialect::Map, Dialect::Array] {
            let [plain, all] = [&without, &salted].map(|extra| written(extra, dialect, true));
            assert!(written(&salted, dialect, false) == plain && plain != all);
        }
    }
}
