//! The order of training: a permutation that is a function of the seed and the epoch, so that resuming recomputes it.

use super::split::hash;

/// Indices into `keys` ([`super::Example::key`]) in batches of `batch_size`, each index once; the last batch may be
/// smaller. Rows are ordered by a hash of (seed, epoch, key): the order of the file does not matter.
pub fn plan_batches(keys: &[u64], batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let place = |key: u64| hash(&[seed.to_le_bytes(), epoch.to_le_bytes(), key.to_le_bytes()].concat());
    let mut order: Vec<(u64, u64, usize)> =
        keys.iter().enumerate().map(|(i, key)| (place(*key), *key, i)).collect();
    order.sort_unstable();
    let indices: Vec<usize> = order.into_iter().map(|(_, _, i)| i).collect();
    indices.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_in_an_order_of_its_own_each_epoch() {
        let keys: Vec<u64> = (0..103).map(|i| i * 7919).collect();
        let first = plan_batches(&keys, 8, 42, 0);
        assert_eq!(first.len(), 13);
        assert!(first[..12].iter().all(|batch| batch.len() == 8));
        let mut all: Vec<usize> = first.concat();
        all.sort_unstable();
        assert_eq!(all, (0..103).collect::<Vec<_>>());
        assert_eq!(first, plan_batches(&keys, 8, 42, 0));
        assert_ne!(first, plan_batches(&keys, 8, 42, 1));
        assert_ne!(first, plan_batches(&keys, 8, 43, 0));
        assert!(plan_batches(&[], 8, 0, 0).is_empty());
        assert_eq!(plan_batches(&[1, 2], 0, 0, 0).len(), 2);
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let keys: Vec<u64> = (0..50).collect();
        let reversed: Vec<u64> = keys.iter().rev().copied().collect();
        let order = |keys: &[u64]| -> Vec<u64> {
            plan_batches(keys, 4, 1, 2).concat().iter().map(|i| keys[*i]).collect()
        };
        assert_eq!(order(&keys), order(&reversed));
    }

    #[test]
    fn places_are_even() {
        // Over 400 epochs each of 10 rows comes first about 40 times.
        let keys: Vec<u64> = (0..10).collect();
        let mut first = [0; 10];
        (0..400).for_each(|epoch| first[plan_batches(&keys, 1, 9, epoch)[0][0]] += 1);
        assert!(first.iter().all(|n| (15..70).contains(n)), "{first:?}");
    }
}
