"""Writes what transformers' Whisper normalisers make of some hundred texts to tests/data/sound/normalizer.json.

  PY scripts/reference/make_normalizer_cases.py [--out tests/data/sound/normalizer.json]

The English one takes its spellings from crates/retune/src/metrics/words/english.json, OpenAI's own table.
"""
import argparse, importlib.metadata, json, pathlib, random
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

ROOT = pathlib.Path(__file__).resolve().parents[2]

TEXTS = """Mr. Park visited Mrs. Smith, Dr. Jones and St. John's on Jan. 5th.
I won't, can't, shan't, ain't, y'all, let's, we're, they've, I'd, she'd've, he'll, it's, I'm, you're, don't
He'd been there. She's been gone. It'd gone; he's gone. They'd done it. She's got it. What's done is done.
I'ma do it, imma go, gonna, gotta, wanna, woulda coulda shoulda, ma'am
um, uh, hmm, mm, mhm, mmm, umm, uhm - um-hum
Capt. Gov. Ald. Gen. Sen. Rep. Pres. Rev. Hon. Asst. Assoc. Lt. Col. Jr. Sr. Esq. Prof.
[laughter] hello <noise> world (inaudible) there (a (nested) one) [unclosed
$20 million, £3.50, €1,234,567.89, ¢99, $2 and ¢7, $0.07, 50% of 20 %, $.5, 3 dollars and 7 cents
twenty million dollars, three pounds fifty, one hundred euros, five cents, two dollars and seven cents
one hundred and twenty-three, two thousand and one, nineteen ninety-nine, twenty twenty, one oh one
the first, second, third, fourth, fifth, sixth, eighth, ninth, twelfth, nineteenth, twentieth, twenty-first, hundredth, thousandth, zeroth
the sixties, nineteen sixties, 1960s, sixes, ones, twos, fives, twenties, hundreds of thousands, millions
1st 2nd 3rd 4th 32nd 274 th 11 s
minus five, negative twenty, plus one, positive attitude, minus the rest, minus 3.5
five percent, 5 per cent, ten per day, percent, per cent of
double seven, triple zero, double trouble, double oh seven, triple twenty
three point one four one five nine, point five, zero point two, point taken, three point, 1.5 point 2
two and a half million, one and a half, a day and a half, five hundred and a half, and a half
one two three four five, oh seven nine double three, nine one one, zero zero seven
eleven twelve thirteen, twenty eleven, twenty one twelve, thirty thirty, ninety nine nineteen
one hundred two hundred thousand three million, nine hundred ninety nine decillion, two million three hundred thousand four hundred and five
a hundred, a thousand and one nights, hundred hundred, thousand thousand, million and one
1,000,000 and 12,34,56 and 1,2,3
3.0 million, 2.5 thousand, 1.2.3.4 million, 192.168.0.1, 0.001 thousand, 0 million, 00 thousand
version 2.0.1 of the 3D game on 4x4 at 10am and 5pm, b2b, mp3, covid19
A.M. and P.M., e.g. i.e. U.S.A. etc. ... end.
the colour of the armour, aluminium, behaviour, centre, cheque, grey, theatre, organise, realised, travelling, programme, mum
Crème brûlée, naïve café, façade, Ångström, Łódź, straße, æther, œuvre, Þór, đặc, smørrebrød, ÐÐ, ẞ
Ελληνικά κείμενα ΟΔΥΣΣΕΥΣ, Русский текст Ёлка й, עברית, العربية ١٢٣ ٣٫٥, हिन्दी १२३ में, ไทยภาษา, 日本語テキスト、漢字。ガギ が, 한국어 문장, 中文（括号）「引号」
Fullwidth ＡＢＣ１２３％ ﬁ ligature ² ³ ½ ① Ⅳ ㎏ ℃ … — – “quotes” ‘single’ it’s don’t
emoji 😀👩‍👩‍👧‍👦 🇫🇷 ♪ la la ♪ ♩♬ ™ © ®
under_score hash#tag at@sign slash/back\\slash tilde~ caret^ pipe| star* plus+ equals= less< greater>
C'est l'été, aujourd'hui j'ai 20 ans; où ça? «Voilà!» dit-elle. L'œuf à 3,50 €.
¿Qué tal? ¡Mañana! Señor Núñez. Größe, Übermut, Fräulein; Dvořák, Škoda; İstanbul ILIK; Čeština
' leading apostrophe, the '90s, rock 'n' roll, o' clock , it 's , dogs' , 'tis
one's own, the one, number one, ones, 1, 1s, 1's, 11, a1, 1b, one1
hundred and one dalmatians, hundred and, and hundred, two and two, two hundred and and two
seven eleven, four twenty, six sixty six, one ten, ten one, ten ten, one one, one eleven
five o'clock, o, oh no, oh, zero, zero zero, o o o
twenty-twenty vision, thirty-second, a second, seconds, thirds, three-quarters, two thirds, one fourth
$5.99 per month, $1 per, 100% sure, %, 5 %, a%b, .5, 5., . . ., $, $ 5, £ five
ten million billion, one billion dollars, two hundred pounds sterling, fifty euro, fifty cent, dollar five
one point, point one point two, two point five million, one point five thousand, three point one four million
nineteen oh five, two thousand ten, two thousand and ten, twenty ten, eighteen twelve, sixteen hundred, nineteen hundred and one
+1 800 555 0199, (555) 123-4567, 12:30, 24/7, 1-2, 3x, -5, +5, -$5, $-5
first hundred, second million, third one, one third hundred, hundredths, tenths, millionth, twenty thousandth, zero hundred, zero hundredth, double zero hundred
tabs\tand\u00a0no-break\u2003spaces\u200bzero\u200dwidth\x1cfile\x85next
combining e\u0301 a\u0308 n\u0303 mr\u0301 5\u0301th, \u0e01\u0e33\u0e25\u0e31\u0e07
123456789012345678901234567890 million, ninety nine 99, 5 five, five 5, 20 five, twenty 5, 100 and 5, hundred 5, 5 hundred, 5 thousandth, 1.5 millionth, 007 hundred""".split("\n")


def made_up():
    """Random phrases of words that do something in numbers."""
    rng = random.Random(7)
    words = """one two three five nine ten eleven twelve nineteen twenty thirty ninety hundred thousand million billion first third fifth
    twelfth twentieth ninetieth hundredth millions ones sixes fifties and and point point double triple oh o zero minus plus negative dollars
    pounds cents cent euro percent per cent a the half cat 1 2 0 10 100 3.5 0.5 20 1,000 $5 £2.50 5% 7th 1960s 1.2.3 mr. it's don't colour 00""".split()
    return [" ".join(rng.choice(words) for _ in range(rng.randint(2, 9))) for _ in range(260)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "sound" / "normalizer.json", type=pathlib.Path)
    args = ap.parse_args()
    table = json.loads((ROOT / "crates/retune/src/metrics/words/english.json").read_text())
    spellings = sorted(random.Random(3).sample(sorted(table), 20))
    texts = TEXTS + made_up() + [" ".join(spellings)]
    english = EnglishTextNormalizer(table)
    basic, bare, letters = BasicTextNormalizer(), BasicTextNormalizer(remove_diacritics=True), BasicTextNormalizer(split_letters=True)
    cases = [dict(text=t, english=english(t), basic=basic(t), no_diacritics=bare(t), letters=letters(t)) for t in texts]
    out = dict(versions={n: importlib.metadata.version(n) for n in ("transformers", "regex")}, cases=cases)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
