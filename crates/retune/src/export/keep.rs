//! Which modules a pattern keeps out of quantisation.

/// Is the tensor of this name kept by one of the patterns? A pattern is a module's path, its beginning, its end, or a regular
/// expression for its beginning: as transformers reads `llm_int8_skip_modules`.
pub fn is_kept(tensor: &str, patterns: &[String]) -> bool {
    let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
    patterns.iter().any(|pattern| module.starts_with(pattern.as_str()) || module.ends_with(pattern.as_str()))
}
