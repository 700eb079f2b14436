//! `propose`: drafts of the next tokens, from an earlier place in the same sequence.

/// Returns at most `most` drafts: the tokens that followed the last two tokens at their latest earlier place.
pub fn propose(tokens: &[u32], most: usize) -> &[u32] {
    let Some(last) = tokens.len().checked_sub(2) else {
        return &[];
    };
    let is_same = |&at: &usize| tokens[at..at + 2] == tokens[last..];
    let after = (0..last).rev().find(is_same).map_or(tokens.len(), |at| at + 2);
    &tokens[after..tokens.len().min(after + most)]
}

#[test]
fn drafts_follow_the_latest_earlier_pair() {
    assert_eq!(propose(&[1, 2, 3, 1, 2, 4, 5, 1, 2], 2), [4, 5]);
    assert_eq!(propose(&[1, 2, 1, 2], 4), [1, 2]);
    assert!(propose(&[1, 2, 3], 4).is_empty() && propose(&[1], 4).is_empty());
}
