//! Reads and writes the files of models, adapters and data: hostile bytes in, checked values out.
#![forbid(unsafe_code)]
