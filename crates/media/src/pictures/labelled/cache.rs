//! Decoded pictures kept in memory, up to a number of bytes.
//!
//! Epochs go round and round, so what came first stays: throwing out the oldest would keep nothing that is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::super::picture::Picture;

/// Pictures by the index of their example. Any number of threads may ask.
#[derive(Debug, Default)]
pub struct Cache {
    bytes_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    pictures: HashMap<usize, Arc<Picture>>,
}

impl Cache {
    /// Holds at most `bytes_max` bytes of pixels; 0 holds nothing.
    pub fn new(bytes_max: usize) -> Cache {
        Cache { bytes_max, held: Mutex::default() }
    }

    /// The picture of an example: the one that is held, or what `read` gives (held from now on, if there is room).
    pub fn get<E>(
        &self,
        example: usize,
        read: impl FnOnce() -> Result<Picture, E>,
    ) -> Result<Arc<Picture>, E> {
        if let Some(picture) = self.lock().pictures.get(&example) {
            return Ok(picture.clone());
        }
        // Decoded outside the lock: two threads that ask for the same picture at once both decode it.
        let picture = Arc::new(read()?);
        let mut held = self.lock();
        let bytes = held.bytes + picture.data.len();
        if bytes <= self.bytes_max && held.pictures.insert(example, picture.clone()).is_none() {
            held.bytes = bytes;
        }
        Ok(picture)
    }

    /// Bytes of the pixels that are held.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        // A thread that panicked left whole pictures behind.
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_first_stays_and_the_limit_holds() {
        let cache = Cache::new(2 * 12);
        let mut decoded = 0;
        for _ in 0..3 {
            for example in 0..3 {
                let picture = cache.get(example, || {
                    decoded += 1;
                    Ok::<_, ()>(Picture::filled(2, 2, [example as u8; 3]))
                });
                assert_eq!(picture.unwrap().pixel(1, 1), [example as u8; 3]);
            }
        }
        assert_eq!((decoded, cache.bytes()), (2 + 3, 24));
        assert!(Cache::new(100).get(0, || Err::<Picture, _>("no")).is_err());
    }
}
