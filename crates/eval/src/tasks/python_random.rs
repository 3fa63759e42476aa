//! Python's `random.Random(seed).sample`, which the harness uses to draw few-shot examples.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998) seeded by an integer through `init_by_array`; `sample` and
//! `_randbelow` are those of CPython 3.

/// State of the generator.
pub(super) struct PythonRandom {
    state: [u32; N],
    index: usize,
}

const N: usize = 624;
const M: usize = 397;

impl PythonRandom {
    /// `random.Random(seed)` for a non-negative integer.
    pub(super) fn new(seed: u64) -> Self {
        let low = seed as u32;
        let high = (seed >> 32) as u32;
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        let mut state = [0_u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        for _ in 0..N.max(key.len()) {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] =
                (state[i] ^ before.wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            i += 1;
            j = (j + 1) % key.len();
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ before.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, index: N }
    }

    fn next(&mut self) -> u32 {
        if self.index >= N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n` (at least 1): as many bits as `n` has, drawn again until they are small enough.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let r = (self.next() >> (32 - bits)) as usize;
            if r < n {
                return r;
            }
        }
    }

    /// Indices of `k` of `n` elements, as `sample(range(n), k)`; `k` is at most `n`, and `n` below 2³¹.
    pub(super) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        // CPython weighs the size of a list against that of a set.
        let mut set_size = 21_usize;
        if k > 5 {
            let exponent = ((k * 3) as f64).log(4.0).ceil() as u32;
            set_size += 4_usize.pow(exponent);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect()
        } else {
            let mut chosen: Vec<usize> = Vec::with_capacity(k);
            while chosen.len() < k {
                let j = self.below(n);
                if !chosen.contains(&j) {
                    chosen.push(j);
                }
            }
            chosen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_draws_as_python_does() {
        // r = random.Random(seed); [r.sample(range(n), k), r.sample(range(n), k)]
        let check = |seed, n, k, first: &[usize], second: &[usize]| {
            let mut random = PythonRandom::new(seed);
            assert_eq!(random.sample(n, k), first);
            assert_eq!(random.sample(n, k), second);
        };
        check(1234, 10, 4, FIRST.0, FIRST.1);
        check(0, 1000, 5, SECOND.0, SECOND.1);
        check(1 << 40, 100, 8, THIRD.0, THIRD.1);
    }

    type Draws = (&'static [usize], &'static [usize]);
    const FIRST: Draws = (&[7, 1, 0, 9], &[9, 0, 1, 8]);
    const SECOND: Draws = (&[864, 394, 776, 911, 430], &[41, 265, 988, 523, 497]);
    const THIRD: Draws = (&[13, 45, 85, 8, 54, 6, 49, 51], &[80, 71, 9, 91, 86, 50, 88, 70]);
}
