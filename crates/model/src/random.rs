//! Counter-based random numbers: a number is a pure function of (seed, stream, index), so that shards, restarts and
//! thread counts change nothing.

/// 64 well-mixed bits for (seed, stream, index): the finaliser of SplitMix64 (Steele, Lea and Flood 2014) applied to each
/// coordinate in turn.
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    mix(mix(mix(seed ^ GOLDEN).wrapping_add(stream)).wrapping_add(index))
}

/// A number in [0, 1) with 24 random bits, so that it is exact in f32.
pub fn uniform(seed: u64, stream: u64, index: u64) -> f32 {
    (bits(seed, stream, index) >> 40) as f32 / (1u64 << 24) as f32
}

/// A number in 0..n (n > 0) by the multiply-shift method; its bias is below n / 2^64.
pub fn below(n: usize, seed: u64, stream: u64, index: u64) -> usize {
    ((u128::from(bits(seed, stream, index)) * n as u128) >> 64) as usize
}

/// A random order of 0..n (Fisher and Yates).
pub fn permutation(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, below(i + 1, seed, stream, i as u64));
    }
    order
}

/// A stream number from words, for example a stage and a domain (FNV-1a over their bytes, with a separator).
pub fn stream(words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in words.iter().flat_map(|w| w.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let mut bins = [0u32; 16];
        for i in 0..16_000 {
            let u = uniform(1, 2, i);
            assert!((0.0..1.0).contains(&u));
            bins[(u * 16.0) as usize] += 1;
        }
        // Each bin expects 1000 with a standard deviation of 31.
        assert!(bins.iter().all(|&b| (850..1150).contains(&b)), "{bins:?}");
    }

    #[test]
    fn a_permutation_holds_every_index_once_and_depends_on_the_seed() {
        let order = permutation(100, 7, 3);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, permutation(100, 7, 3));
        assert_ne!(order, permutation(100, 8, 3));
        assert_ne!(order, permutation(100, 7, 4));
    }

    #[test]
    fn streams_keep_word_boundaries_apart() {
        assert_ne!(stream(&["ab", "c"]), stream(&["a", "bc"]));
    }
}
