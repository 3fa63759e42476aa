//! Counter-based random numbers: a stream is named by (seed, name, index), so that a record's numbers depend neither
//! on the records made before it nor on the thread, shard or restart that makes it.

/// A SplitMix64 generator (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

/// 2^64 divided by the golden ratio: SplitMix64's step.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stream {
    /// The stream called `name` of record `index` in the run with `seed`.
    pub fn new(seed: u64, name: &str, index: u64) -> Self {
        let mut state = mix(seed.wrapping_add(STEP));
        for byte in name.bytes() {
            state = mix((state ^ u64::from(byte)).wrapping_add(STEP));
        }
        Self { state: mix(state ^ mix(index.wrapping_add(STEP))) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
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

#[cfg(test)]
mod tests {
    use super::*;

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
