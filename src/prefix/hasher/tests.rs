//! Tests of hashes: the values of vLLM and of XXH3, and the inputs on which a hash depends.

use super::*;

const ALGORITHMS: &[HashAlgorithm] = &[
    HashAlgorithm::Xxh3 { seed: 5 },
    #[cfg(feature = "vllm-hashes")]
    HashAlgorithm::Sha256Cbor,
    #[cfg(feature = "vllm-hashes")]
    HashAlgorithm::XxhashCbor,
];

fn hashes(algorithm: HashAlgorithm, extra: &ExtraKeys, tokens: &[u32]) -> Vec<BlockHash> {
    let mut out = Vec::new();
    BlockHasher::new(algorithm, 4, extra.clone()).extend(tokens, &mut out);
    out
}

#[test]
fn a_hash_depends_on_every_token_before_it_and_on_none_behind() {
    let tokens: Vec<u32> = (10..22).collect();
    for &algorithm in ALGORITHMS {
        let plain = hashes(algorithm, &ExtraKeys::default(), &tokens);
        for at in 0..tokens.len() {
            let mut other = tokens.clone();
            other[at] += 1;
            let other = hashes(algorithm, &ExtraKeys::default(), &other);
            let equal: Vec<bool> = plain.iter().zip(&other).map(|(a, b)| a == b).collect();
            let want: Vec<bool> = (0..3).map(|block| block < at / 4).collect();
            assert_eq!(equal, want, "{algorithm:?}, token {at}");
        }
    }
}

#[test]
fn every_extra_key_tells_contents_apart() {
    let plain = ExtraKeys::default();
    let extras = [
        plain.clone(),
        plain.clone().salt("a"),
        plain.clone().salt("b"),
        plain.clone().lora("a", "p"),
        plain.clone().lora("a", "q"),
        plain.clone().media("a", 0..2),
        plain.clone().media("a", 1..2),
        plain.media("b", 0..2),
    ];
    for &algorithm in ALGORITHMS {
        let mut seen: Vec<_> =
            extras.iter().map(|extra| hashes(algorithm, extra, &[1, 2, 3, 4])).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), extras.len(), "{algorithm:?}");
    }
}

#[test]
fn a_long_block_hashes_as_its_tokens_come() {
    let tokens: Vec<u32> = (0..400).collect();
    for block_size in [1, 3, 64, 65, 200] {
        let start = BlockHasher::new(ALGORITHMS[0], block_size, ExtraKeys::default());
        let (mut at_once, mut in_parts) = (Vec::new(), Vec::new());
        start.clone().extend(&tokens, &mut at_once);
        let mut hasher = start;
        tokens.chunks(7).for_each(|part| hasher.extend(part, &mut in_parts));
        assert_eq!(at_once, in_parts);
        assert_eq!(at_once.len(), 400 / block_size);
    }
}

/// The last hash of 400 tokens, by the crate xxhash-rust 0.8.
#[test]
fn keyed_hashes_are_xxh3_with_a_seed() {
    let goldens = [
        (5, 1, 0xffe65eed1384a8909d010bb6f9f5f511),
        (5, 4, 0xb594d412edd9ce8061999fe5c836a466),
        (5, 16, 0xecbc514afaa2be24b0e8a727e4670173),
        (5, 64, 0x2b5e5f1034c94d0b02bf921e82d99547),
        (5, 65, 0xfda894900726bb6481f19e88b1a91211),
        (5, 200, 0xb858e0ec986d7c276ff7f9bcc0fbecf0),
        (u64::MAX, 1, 0x8c3dd5084b228c128cd5352c234abe21),
        (u64::MAX, 16, 0x03cc5b31fe7f5756f0c4e93e0017008b),
        (u64::MAX, 200, 0x478a64f38adb85b251f153d7aa456002),
    ];
    let tokens: Vec<u32> = (0..400).map(scattered).collect();
    for (seed, block_size, golden) in goldens {
        let last = last_hash(HashAlgorithm::Xxh3 { seed }, block_size, &tokens);
        assert_eq!(last, BlockHash::from_u128(golden), "{seed}, {block_size}");
    }
}

fn scattered(number: u32) -> u32 {
    number.wrapping_mul(2_654_435_761)
}

fn last_hash(algorithm: HashAlgorithm, block_size: usize, tokens: &[u32]) -> BlockHash {
    let mut out = Vec::new();
    BlockHasher::new(algorithm, block_size, ExtraKeys::default()).extend(tokens, &mut out);
    *out.last().expect("a full block")
}

#[cfg(feature = "vllm-hashes")]
mod vllm {
    use super::*;

    fn digests(algorithm: HashAlgorithm, extra: ExtraKeys, tokens: &[u32]) -> Vec<String> {
        let mut hasher = BlockHasher::new(algorithm, 4, extra);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = |hasher: &BlockHasher| match &hasher.chain {
            Chain::Keyed { parent, .. } | Chain::Xxhash(parent) => hex(parent),
            Chain::Sha256(parent) => hex(parent),
        };
        let mut digests = vec![digest(&hasher)];
        for block in tokens.chunks(4) {
            hasher.extend(block, &mut Vec::new());
            digests.push(digest(&hasher));
        }
        digests
    }

    #[test]
    fn sha256_cbor_is_vllms() {
        let goldens = [
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
            "c49ab11fb576db6f376aef58c24f728a0ba1807e8cac5f940f1a5c4c20741898",
            "9d0a7c928c548f9aeea31ae98471cf515045a206851732ac14cb3083c18d40f9",
        ];
        let tokens: Vec<u32> = (0..8).collect();
        assert_eq!(digests(HashAlgorithm::Sha256Cbor, ExtraKeys::default(), &tokens), goldens);
    }

    #[test]
    fn xxhash_cbor_is_vllms() {
        let goldens = [
            "a4e364baa0791a6f63bbf917db9b700d",
            "f4258c12e00ef72ae8ca84d60cf71df1",
            "c10ce0fe35916e5b646ba445b822e5ec",
        ];
        let tokens: Vec<u32> = (0..8).collect();
        assert_eq!(digests(HashAlgorithm::XxhashCbor, ExtraKeys::default(), &tokens), goldens);
    }

    #[test]
    fn a_salt_is_part_of_the_first_block_as_in_vllm() {
        let salted = ExtraKeys::default().salt("salt1");
        let digest = &digests(HashAlgorithm::Sha256Cbor, salted, &[0, 1, 2, 3])[1];
        assert_eq!(digest, "c6ff4bc1fd5c6b55b756427a15cbb296aaefaf0ce6436c6932c6b2a7ad5fbbaa");
    }

    /// The last hash of 700 tokens of all sizes, by the Python packages cbor2 and xxhash, and hashlib.
    #[test]
    fn integers_of_every_size_are_hashed_as_in_vllm() {
        use HashAlgorithm::{Sha256Cbor, XxhashCbor};
        let goldens = [
            (Sha256Cbor, 1, 0xb1ceaae3ce311bcc722a964e3db975e4),
            (Sha256Cbor, 16, 0x62d9a6d6202c41718efb026f5a0bcddb),
            (Sha256Cbor, 24, 0x7d7a355c066e47127317b34f39e5d75e),
            (Sha256Cbor, 65, 0x7c1addb3c0eeae971dd4fceef96e8f42),
            (Sha256Cbor, 300, 0x8b0af47dfc161581d466f782decd9a97),
            (XxhashCbor, 1, 0x16a9a562284911715ee46f593ac18688),
            (XxhashCbor, 16, 0x5dab3d671dd24d65d978f8374c4e0dcf),
            (XxhashCbor, 24, 0x72d2c988fff601f3bcf58e51ee2fff7b),
            (XxhashCbor, 65, 0x92fa2caf0915ad46025c9926493ab192),
            (XxhashCbor, 300, 0x8bf77ac85f3f7f5bcf1094e3689ef492),
        ];
        let sizes = (0..33_u32).map(|shift| shift.min(31)).cycle();
        let tokens: Vec<u32> =
            (0..700).zip(sizes).map(|(number, shift)| scattered(number) >> shift).collect();
        for (algorithm, block_size, golden) in goldens {
            let last = last_hash(algorithm, block_size, &tokens);
            assert_eq!(last, BlockHash::from_u128(golden), "{algorithm}, {block_size}");
        }
    }
}
