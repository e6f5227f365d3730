//! Sound: decoding, resampling, log-mel features.
