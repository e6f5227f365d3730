//! The adapter folder's README.md: a model card with the front matter that PEFT writes, and what this run was.

use super::{ReportData, bytes, count, duration, number, quality, retained};
use crate::objective::Unit;
use crate::tasks::classification::Problem;

/// The card's text. `run_file` is the complete run file, shown as it is.
pub fn model_card(data: &ReportData, run_file: &str) -> String {
    let mut card = front_matter(data);
    card += &format!(
        "# {} {} {}\n\nTrained by Retune {} with method `{}`.\n\n",
        one_line(&data.method),
        if data.whole_model { "fine-tuning of" } else { "adapter for" },
        one_line(&data.model),
        data.version,
        one_line(&data.method)
    );
    card += "## Results\n\n| | before | after |\n|---|---|---|\n";
    for (name, before, after) in quality::rows(data) {
        let name = one_line(&name).replace('|', "/");
        card += &format!("| {name} | {before} | {after} |\n");
    }
    let curve = data.evals.first().zip(data.evals.last()).filter(|_| data.metrics.is_none());
    if let Some((first, last)) = curve {
        card += &format!("| held-out loss | {} | {} |\n", number(first.loss), number(last.loss));
        card += &format!(
            "| held-out perplexity | {} | {} |\n",
            number(first.loss.exp()),
            number(last.loss.exp())
        );
    }
    for (name, before, after) in retained::rows(data) {
        card += &format!("| {} | {before} | {after} |\n", one_line(&name).replace('|', "/"));
    }
    if let (Some(first), Some(last)) = (data.steps.first(), data.steps.last()) {
        card += &format!(
            "| training loss (first, last step) | {} | {} |\n",
            number(first.loss),
            number(last.loss)
        );
    }
    if let Some(retained) = &data.retained {
        card += &format!(
            "\nForgetting, measured on {} rows: {}.\n",
            count(retained.rows),
            one_line(&retained.sentence())
        );
    }
    card += &format!(
        "\n{} trained parameters of {}; {} {} in {}; peak memory {}.\n\n",
        count(data.trainable_parameters),
        count(data.total_parameters),
        count(data.tokens),
        data.unit.name(),
        duration(data.seconds),
        bytes(data.memory.peak_bytes)
    );
    card += &format!(
        "## Use\n\n```python\n{}```\n\n```sh\n{}\n```\n\n",
        python_snippet(data),
        fenced(&commands(data))
    );
    card += &format!(
        "## Made by\n\n```sh\n{}\n```\n\n```toml\n{}```\n",
        one_line(&data.command),
        fenced(run_file)
    );
    card
}

fn front_matter(data: &ReportData) -> String {
    let (library, relation) =
        if data.whole_model { ("transformers", "finetune") } else { ("peft", "adapter") };
    let task = match data.problem() {
        _ if data.transcribes => "automatic-speech-recognition",
        None => "text-generation",
        Some(Problem::Tokens) => "token-classification",
        Some(_) => "text-classification",
    };
    format!(
        "---\nbase_model: {}\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- base_model:{relation}:{}\n- {}\n- retune\n---\n\n",
        quoted(data.model_path()),
        one_line(data.model_path()).replace(char::is_whitespace, "-"),
        one_line(&data.method)
    )
}

/// How to use the result with this program.
pub(super) fn commands(data: &ReportData) -> String {
    let (model, out) = (one_line(data.model_path()), one_line(&data.out));
    if data.transcribes {
        return match data.whole_model {
            true => format!("retune transcribe --model {out} SOUND.wav"),
            false => format!(
                "retune transcribe --model {model} --adapter {out} SOUND.wav\nretune merge --model {model} --adapter {out} --out merged"
            ),
        };
    }
    let (command, input) = match data.problem() {
        None => ("generate", "--chat --prompt"),
        Some(_) if data.unit == Unit::Pictures => ("predict ", "--image"),
        Some(_) => ("predict ", "--text"),
    };
    match data.whole_model {
        true => format!("retune {} --model {out} {input} \"...\"", command.trim()),
        false => format!(
            "retune {command} --model {model} --adapter {out} {input} \"...\"\nretune merge    --model {model} --adapter {out} --out merged"
        ),
    }
}

/// How transformers and PEFT load the result.
pub(super) fn python_snippet(data: &ReportData) -> String {
    if data.unit == Unit::Pictures {
        return "# transformers has no class for such a network: build it (torchvision, say), load its weights,\n\
                # then peft.PeftModel.from_pretrained(network, FOLDER) for LoRA and IA3.\n"
            .into();
    }
    let (model, out) = (quoted(data.model_path()), quoted(&data.out));
    if data.transcribes {
        let class = "WhisperForConditionalGeneration";
        return match data.whole_model {
            true => format!(
                "from transformers import {class}, WhisperProcessor\n\nmodel = {class}.from_pretrained({out})\nprocessor = WhisperProcessor.from_pretrained({out})\n"
            ),
            false => format!(
                "from peft import PeftModel\nfrom transformers import {class}, WhisperProcessor\n\nbase = {model}\nmodel = PeftModel.from_pretrained({class}.from_pretrained(base), {out})\nprocessor = WhisperProcessor.from_pretrained(base)\n"
            ),
        };
    }
    let class = match data.problem() {
        None => "AutoModelForCausalLM",
        Some(Problem::Tokens) => "AutoModelForTokenClassification",
        Some(_) => "AutoModelForSequenceClassification",
    };
    if data.whole_model {
        return format!(
            "from transformers import {class}, AutoTokenizer\n\nmodel = {class}.from_pretrained({out})\ntokenizer = AutoTokenizer.from_pretrained({out})\n"
        );
    }
    // A new head has as many outputs as there are classes.
    let (note, outputs) = match data.problem() {
        None => ("  # a GGUF file: write it as a folder with `retune export` first", String::new()),
        Some(_) => ("", format!(", num_labels={}", data.outputs.max(1))),
    };
    format!(
        "from peft import PeftModel\nfrom transformers import {class}, AutoTokenizer\n\nbase = {model}{note}\nmodel = PeftModel.from_pretrained({class}.from_pretrained(base{outputs}), {out})\ntokenizer = AutoTokenizer.from_pretrained(base)\n"
    )
}

/// A JSON string is also a YAML and a Python string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c }).collect()
}

fn fenced(text: &str) -> String {
    text.replace("```", "'''")
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn card_has_front_matter_results_and_run_file() {
        let card = model_card(&sample(), "model = \"m\"\n");
        assert!(
            card.starts_with("---\nbase_model: \"SmolLM2-135M-Instruct.Q4_1.gguf\"\nlibrary_name: peft\n")
        );
        assert!(card.contains("| held-out loss | 3.42 | 1.97 |"));
        assert!(card.contains("```toml\nmodel = \"m\"\n```"));
    }

    #[test]
    fn names_cannot_break_out() {
        let mut data = sample();
        data.model_path = "evil\"\ntags: [x]\n```".into();
        let card = model_card(&data, "x = '''\n```\n");
        assert!(card.starts_with("---\nbase_model: \"evil\\\"\\ntags: [x]\\n```\"\n"), "{card}");
        assert_eq!(card.lines().filter(|line| line.starts_with("tags:")).count(), 1);
    }
}
