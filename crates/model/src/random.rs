//! Counter-based random numbers: a number is a pure function of (seed, stream, index), so that shards, restarts and
//! thread counts change nothing. [`Stream`] is a sequence of numbers for a record that is named by (seed, name, index).

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

/// A SplitMix64 generator whose start depends on a seed, a name and an index.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The stream called `name` of record `index` in the run with `seed`.
    pub fn new(seed: u64, name: &str, index: u64) -> Self {
        let state = name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
        Self { state: finalise(state ^ mix(index)) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let bits = mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN);
        bits
    }

    /// A number in `0..bound`; 0 if `bound` is 0. The bias of at most `bound / 2^64` is of no consequence.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `count` different numbers of `0..bound` in random order, all of them if there are fewer.
    pub fn choose(&mut self, bound: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..bound).collect();
        let count = count.min(bound);
        for i in 0..count {
            let j = i + self.below(bound - i);
            all.swap(i, j);
        }
        all.truncate(count);
        all
    }
}

/// 2^64 divided by the golden ratio: SplitMix64's step.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What SplitMix64 gives in the state `x`.
fn mix(x: u64) -> u64 {
    finalise(x.wrapping_add(GOLDEN))
}

fn finalise(x: u64) -> u64 {
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
    /// Runs that were made with these numbers must be continued with them.
    #[test]
    fn streams_stay_what_they_were() {
        let mut stream = Stream::new(7, "respond/math", 3);
        let first = [stream.next_u64(), stream.next_u64()];
        assert_eq!(first, [0x7968_c82d_59cb_1797, 0xe2f3_f1b8_388f_9094]);
    }

    #[test]
    fn streams_are_reproducible_and_differ_by_every_part_of_their_name() {
        let first = |seed, name, index| Stream::new(seed, name, index).next_u64();
        assert_eq!(first(1, "math", 7), first(1, "math", 7));
        assert_ne!(first(1, "math", 7), first(2, "math", 7));
        assert_ne!(first(1, "math", 7), first(1, "math ", 7));
        assert_ne!(first(1, "math", 7), first(1, "math", 8));
    }

    #[test]
    fn choices_are_different_in_range_and_even() {
        let mut counts = [0usize; 10];
        for index in 0..3000 {
            let chosen = Stream::new(3, "even", index).choose(10, 3);
            assert_eq!(chosen.len(), 3);
            assert!(chosen[0] != chosen[1] && chosen[1] != chosen[2] && chosen[0] != chosen[2]);
            chosen.iter().for_each(|&c| counts[c] += 1);
        }
        // 900 expected, standard deviation 25.
        assert!(counts.iter().all(|&c| (790..1010).contains(&c)), "{counts:?}");
        assert_eq!(Stream::new(3, "few", 0).choose(2, 5).len(), 2);
        assert_eq!(Stream::new(3, "none", 0).choose(0, 5), Vec::<usize>::new());
    }

    #[test]
    fn units_are_below_one() {
        let mut stream = Stream::new(0, "unit", 0);
        let mean = (0..4000).map(|_| stream.unit()).inspect(|u| assert!((0.0..1.0).contains(u))).sum::<f64>()
            / 4000.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
    }
}
