from course_utils.grading.mutants import Mutant

BY_WORDS = """
def split(text):
    sentences, words = [], []
    for word in text.split(" ") if text else []:
        words.append(word)
        if word[-1:] in (".", "!", "?"):
            sentences.append(" ".join(words))
            words = []
    return sentences + ([" ".join(words)] if words else [])

def inside(text, at):
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")

def contains(text, phrase):
    text, phrase = text.lower(), phrase.lower()
    at = text.find(phrase)
    while at >= 0:
        if not inside(text, at - 1) and not inside(text, at + len(phrase)):
            return True
        at = text.find(phrase, at + 1)
    return False

def critique(answer, principles):
    sentences = split(answer)
    for principle in principles:
        for i in range(len(sentences)):
            for phrase in principle["forbidden"]:
                if contains(sentences[i], phrase):
                    return [principle["name"], i]
        if principle["required"] and sum(contains(answer, r) for r in principle["required"]) == 0:
            return [principle["name"], len(sentences)]

def critique_revise(answer, principles, max_rounds=8):
    history = []
    breach = critique(answer, principles)
    while breach is not None and len(history) < max_rounds:
        name, place = breach
        new = [p for p in principles if p["name"] == name][0]["replacement"]
        sentences = split(answer)
        sentences[place : place + 1] = [new] if new else []
        answer = " ".join(sentences)
        history.append([name, place, answer])
        breach = critique(answer, principles)
    return {"text": answer, "history": history, "clean": breach is None}
"""

RECURSIVE = r"""
import re

def critique(answer, principles):
    parts = [s.strip() for s in re.findall(r".+?[.!?](?= |$)|.+$", answer)]
    def hit(phrases, text):
        return phrases and re.search(
            r"(?<!\w)(?:" + "|".join(map(re.escape, phrases)) + r")(?!\w)", text, re.I)
    found = ((p["name"], next((i for i, s in enumerate(parts) if hit(p["forbidden"], s)),
              len(parts) if p["required"] and not hit(p["required"], answer) else -1))
             for p in principles)
    return next((breach for breach in found if breach[1] >= 0), None)

def critique_revise(answer, principles, max_rounds=8):
    breach = critique(answer, principles)
    if breach is None or max_rounds < 1:
        return {"text": answer, "history": [], "clean": breach is None}
    parts = [s.strip() for s in re.findall(r".+?[.!?](?= |$)|.+$", answer)]
    new = {p["name"]: p["replacement"] for p in principles}[breach[0]]
    parts = parts[: breach[1]] + [new] * bool(new) + parts[breach[1] + 1 :]
    text = " ".join(parts)
    rest = critique_revise(text, principles, max_rounds - 1)
    return {**rest, "history": [(*breach, text), *rest["history"]]}
"""

_FORBIDDEN = 'if any(says(sentence, phrase) for phrase in principle["forbidden"]):'
_REQUIRED = 'if principle["required"] and not any('
_LOOP = "while breach is not None and len(history) < max_rounds:"
_PUT = 'sentences[place : place + 1] = [principle["replacement"]]'
_END = 'return {"text": answer, "history": history, "clean": breach is None}'
_NONE = """not any(
            says(sentence, phrase) for sentence in sentences for phrase in principle["required"]
        ):"""
_HIT = 'hit = lambda s, f: re.search(r"(?<!\\w)" + re.escape(f) + r"(?!\\w)", s, re.I); '
_NEW = '        answer = " ".join(s for s in sentences if s)\n'
_NOTE = "        history.append((name, place, answer))\n"
_ORDER = """    for principle in principles:
        for place, sentence in enumerate(sentences):
            if any(says(sentence, phrase) for phrase in principle["forbidden"]):"""
MUTANTS = (
    Mutant("nothing found", "    sentences = split_sentences(answer)\n    for principle in",
           "    return None\n    for principle in", "nothing found"),
    Mutant("sentence first", _ORDER, """    for place, sentence in enumerate(sentences):
        for principle in principles:
            if any(says(sentence, phrase) for phrase in principle["forbidden"]):
                return principle["name"], place
""" + _ORDER, "sentence first"),
    Mutant("last principle", "for principle in principles:\n        for place",
           "for principle in principles[::-1]:\n        for place", "last principle"),
    Mutant("last sentence", "in enumerate(sentences):",
           "in reversed(list(enumerate(sentences))):", "last sentence"),
    Mutant("first phrase", 'for phrase in principle["forbidden"]):',
           'for phrase in principle["forbidden"][:1]):', "first phrase only"),
    Mutant("case", ", re.IGNORECASE", "", "case"),
    Mutant("part of a word", 'r"(?<!\\w)" + re.escape(phrase) + r"(?!\\w)"', "re.escape(phrase)",
           "part of a word"),
    Mutant("not escaped", "re.escape(phrase)", "phrase.replace('(', '[(]').replace(')', '[)]')"
           ".replace('++', '+')", "signs"),
    Mutant("word boundary", 'r"(?<!\\w)" + re.escape(phrase) + r"(?!\\w)"',
           'r"\\b" + re.escape(phrase) + r"\\b"', "signs"),
    Mutant("required forgotten", _REQUIRED, "if False and not any(", "required forgotten"),
    Mutant("all required", _NONE, 'not all(any(says(s, p) for s in sentences) for p in '
           'principle["required"]):', "all required"),
    Mutant("required at 0", 'return principle["name"], len(sentences)',
           'return principle["name"], 0', "required at 0"),
    Mutant("from 1", 'return principle["name"], place', 'return principle["name"], place + 1',
           "from 1"),
    Mutant("full stops", '(?<=[.!?]) "', '(?<=[.]) "', "full stops only"),
    Mutant("any mark", 'r"(?<=[.!?]) "', 'r"(?<=[.!?]) ?"', "marks anywhere"),
    Mutant("a sentence", 'return principle["name"], place', 'return principle["name"], sentence',
           "not a breach"),
    Mutant("one round", _LOOP, "while breach is not None and len(history) < min(max_rounds, 1):",
           "one round"),
    Mutant("all at once", _PUT, _HIT + 'sentences = [principle["replacement"] if i == place or '
           'any(hit(s, f) for f in principle["forbidden"]) else s for i, s in enumerate(sentences)]'
           ' + ([principle["replacement"]] if place == len(sentences) else [])', "all at once"),
    Mutant("no new start", "        breach = critique(answer, principles)\n    return",
           "        breach = critique(answer, principles[principles.index(principle):])\n"
           "    breach = critique(answer, principles)\n    return", "no new start"),
    Mutant("only the phrase", _PUT, _HIT + 'f = next((f for f in principle["forbidden"] if place '
           '< len(sentences) and hit(sentences[place], f)), None); sentences[place : place + 1] = ['
           'principle["replacement"] if f is None else re.sub(re.escape(f), '
           'principle["replacement"], sentences[place], count=1, flags=re.I)]',
           "only the phrase"),
    Mutant("always dropped", _PUT, 'sentences[place : place + 1] = [principle["replacement"]] if '
           "place == len(sentences) else []", "always dropped"),
    Mutant("two spaces", '" ".join(s for s in sentences if s)', '" ".join(sentences)',
           "two spaces"),
    Mutant("in front", _PUT, 'sentences[place % max(len(sentences), 1) : place + 1] = '
           '[principle["replacement"]] + (sentences[:] if place == len(sentences) else [])',
           "added in front"),
    Mutant("too many", _LOOP, _LOOP.replace("<", "<="), "a round too many"),
    Mutant("too few", _LOOP, _LOOP.replace("max_rounds", "max_rounds - 1"), "a round too few"),
    Mutant("text before", _NEW + _NOTE, _NOTE + _NEW, "text before"),
    Mutant("clean by rounds", _END, _END.replace("breach is None", "len(history) < max_rounds"),
           "clean by rounds"),
    Mutant("always clean", _END, _END.replace("breach is None", "True"), "always clean"),
    Mutant("names only", "history.append((name, place, answer))", "history.append(name)",
           "not a history"),
    Mutant("in place", "principle = next(", "principles.sort(key=lambda p: p['name']); "
           "principle = next(", "in place"),
    Mutant("a tuple", _END, "return answer, history, breach is None", "not a dictionary"),
    Mutant("no clean", _END, 'return {"text": answer, "history": history}', "missing key"),
    Mutant("no return", _END, "answer", "not a dictionary"),
    Mutant("hole", "history = []", "raise NotImplementedError('your code here')", "blank"),
    Mutant("first hole", "    sentences = split_sentences(answer)\n    for principle in",
           "    raise NotImplementedError('your code here')\n    for principle in", "blank"),
)  # fmt: skip

ALTERNATIVES = (BY_WORDS, RECURSIVE)
