//! Pictures: decoding, resizing, augmentation, annotations, drawing.
