//! One bit for each block of a disk.

/// Numbers below a limit, each there or not.
#[derive(Debug)]
pub(super) struct Bits {
    words: Vec<u64>,
    limit: u64,
}

impl Bits {
    pub(super) fn new(limit: u64) -> Bits {
        let words = usize::try_from(limit.div_ceil(64)).unwrap_or(0);
        Bits { words: vec![0; words], limit }
    }

    /// Adds a number. Says whether it is below the limit and was not there.
    pub(super) fn add(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|at| self.words.get_mut(at));
        let Some(word) = word.filter(|_| number < self.limit) else { return false };
        let bit = 1 << (number % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(super) fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}
