//! Tests of `AnnouncedTree`: copies, tokenless contents and their descendants.

use super::*;

fn hash(n: u128) -> BlockHash {
    BlockHash::from_u128(n)
}

/// Returns the content `n`, which follows the content before it if `n` is above 1.
fn content(n: u128, tokens: &[u32]) -> Content<'_> {
    let parent = n.checked_sub(1).filter(|&n| n > 0).map(hash);
    let (group, index) = (GroupId(0), n as usize - 1);
    Content { group, hash: hash(n), parent, tokens, extra: None, index }
}

fn removed(tree: &mut AnnouncedTree, id: u32) -> Vec<BlockHash> {
    let mut removed = Vec::new();
    tree.remove(BlockId(id), &mut removed);
    removed
}

#[test]
fn a_content_ends_with_its_last_block_in_whatever_order_they_go() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 1, 3], [0, 2, 3, 1]] {
        let mut tree = AnnouncedTree::new(5, [1].into()).unwrap();
        assert!(tree.insert(BlockId(0), &content(1, &[7]), None));
        (1..4).for_each(|id| tree.add_copy(BlockId(0), BlockId(id)));
        assert!(tree.insert(BlockId(4), &content(2, &[8]), Some(BlockId(0))));
        for (left, id) in (0..4).rev().zip(order) {
            let gone = removed(&mut tree, id);
            assert!(!tree.holds(BlockId(id), GroupId(0), hash(1)), "{id} holds nothing");
            let holders: Vec<_> =
                (0..4).map(BlockId).filter(|&id| tree.holds(id, GroupId(0), hash(1))).collect();
            assert_eq!(holders.len(), left);
            if let Some(&first) = holders.first() {
                assert!(gone.is_empty(), "{order:?}");
                let primary = tree.primary(first);
                assert!(holders.iter().all(|&id| tree.primary(id) == primary), "{order:?}");
                let content = tree.content(primary);
                assert_eq!((content.hash, content.tokens, content.index), (hash(1), &[7][..], 0));
            } else {
                assert_eq!(gone, [hash(2), hash(1)], "{order:?}");
            }
        }
        assert!(tree.has_orphans(GroupId(0)), "what follows it waits for it");
    }
}

#[test]
fn tokenless_contents_are_counted_until_they_get_tokens_or_end() {
    let mut tree = AnnouncedTree::new(6, [1].into()).unwrap();
    assert!(tree.insert(BlockId(0), &content(1, &[7]), None));
    for id in 1..5_u32 {
        let parent = Some(BlockId(id - 1));
        assert!(!tree.insert(BlockId(id), &content(u128::from(id) + 1, &[]), parent));
        assert_eq!(tree.num_tokenless(), id as usize);
    }
    tree.add_copy(BlockId(2), BlockId(5));
    let mut found = Vec::new();
    // The third is learned before the second, so it has to wait.
    tree.learn(BlockId(2), &content(3, &[9]), Some(BlockId(1)), &mut found);
    assert_eq!((tree.num_tokenless(), found.len()), (3, 0));
    tree.learn(BlockId(1), &content(2, &[8]), Some(BlockId(0)), &mut found);
    assert_eq!((tree.num_tokenless(), &found[..]), (2, &[BlockId(1), BlockId(2)][..]));
    assert!(removed(&mut tree, 2).is_empty(), "it has a copy");
    assert!(removed(&mut tree, 4).is_empty(), "it was not announced");
    assert_eq!(tree.num_tokenless(), 1);
    assert_eq!(removed(&mut tree, 0), [hash(3), hash(2), hash(1)]);
    assert_eq!(tree.num_tokenless(), 1);
    tree.clear();
    assert_eq!((tree.num_tokenless(), tree.has_orphans(GroupId(0))), (0, false));
}

#[test]
fn equal_hashes_of_two_groups_are_two_contents() {
    let mut tree = AnnouncedTree::new(8, [1, 2].into()).unwrap();
    let of_second = |n| Content { group: GroupId(1), tokens: &[7, 8], ..content(n, &[]) };
    // In the first group the second content comes first, so it is an orphan.
    assert!(!tree.insert(BlockId(0), &content(2, &[8]), None));
    assert!(tree.insert(BlockId(1), &of_second(1), None));
    let mut found = Vec::new();
    tree.adopt(BlockId(1), &mut found);
    assert!(
        found.is_empty() && tree.has_orphans(GroupId(0)),
        "it waits for the parent in its own group"
    );
    tree.add_copy(BlockId(1), BlockId(2));
    for id in [1, 2] {
        assert_eq!(tree.group(BlockId(id)), GroupId(1));
        let holds = [0, 1].map(|group| tree.holds(BlockId(id), GroupId(group), hash(1)));
        assert_eq!(holds, [false, true], "{id}");
    }
    assert!(tree.insert(BlockId(3), &content(1, &[7]), None));
    tree.adopt(BlockId(3), &mut found);
    assert_eq!(found, [BlockId(0)]);
    assert!(removed(&mut tree, 1).is_empty(), "it has a copy");
    let Content { group, tokens, .. } = tree.content(BlockId(2));
    assert_eq!((group, tokens), (GroupId(1), &[7, 8][..]));
    assert_eq!(removed(&mut tree, 2), [hash(1)]);
    assert_eq!(removed(&mut tree, 3), [hash(2), hash(1)]);
}
