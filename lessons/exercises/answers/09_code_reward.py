from course_utils.grading.mutants import Mutant

GENERATED = """
import ast

LIMIT = 10**12

def code_reward(program, target, max_steps=1000):
    grammar = (ast.Module, ast.Assign, ast.While, ast.Constant, ast.Name, ast.UnaryOp, ast.USub,
               ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Compare, ast.Lt,
               ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Load, ast.Store)

    def bounded(x):
        assert -LIMIT <= x <= LIMIT
        return x

    def evaluate(node, names):
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return names[node.id]
        if isinstance(node, ast.UnaryOp):
            return -evaluate(node.operand, names)
        if isinstance(node, ast.BinOp):
            a, b, kind = evaluate(node.left, names), evaluate(node.right, names), type(node.op)
            if kind is ast.Add: return bounded(a + b)
            if kind is ast.Sub: return bounded(a - b)
            if kind is ast.Mult: return bounded(a * b)
            return bounded(a // b if kind is ast.FloorDiv else a % b)
        a, b = evaluate(node.left, names), evaluate(node.comparators[0], names)
        return {ast.Lt: a < b, ast.LtE: a <= b, ast.Gt: a > b, ast.GtE: a >= b, ast.Eq: a == b,
                ast.NotEq: a != b}[type(node.ops[0])] + 0

    def steps_of(block, names):
        for node in block:
            yield
            if isinstance(node, ast.Assign):
                names[node.targets[0].id] = evaluate(node.value, names)
                continue
            while evaluate(node.test, names):
                yield from steps_of(node.body, names)
                yield

    try:
        assert len(program) <= 200
        tree = ast.parse(program)
        for node in ast.walk(tree):
            assert isinstance(node, grammar)
            if isinstance(node, ast.Constant):
                assert type(node.value) is int and node.value <= LIMIT
            elif isinstance(node, ast.Assign):
                assert len(node.targets) == 1
            elif isinstance(node, ast.While):
                assert not node.orelse
            elif isinstance(node, ast.Compare):
                assert len(node.ops) == 1
        names = {}
        for count, _ in enumerate(steps_of(tree.body, names), 1):
            assert count <= max_steps
        return 1.0 if names["answer"] == target else 0.0
    except Exception:
        return 0.0
"""

COMPILED = '''
import ast

class Machine(ast.NodeVisitor):
    """A list of instructions first (with jumps), then a stack machine."""

    def __init__(self):
        self.code = []

    def generic_visit(self, node):
        raise SyntaxError(type(node).__name__)

    def visit_Module(self, node):
        for statement in node.body:
            self.visit(statement)

    def visit_Assign(self, node):
        (target,) = node.targets
        if not isinstance(target, ast.Name):
            raise SyntaxError("target")
        self.code.append(("step", None))
        self.visit(node.value)
        self.code.append(("store", target.id))

    def visit_While(self, node):
        if node.orelse:
            raise SyntaxError("else")
        start = len(self.code)
        self.code.append(("step", None))
        self.visit(node.test)
        jump = len(self.code)
        self.code.append(None)
        for statement in node.body:
            self.visit(statement)
        self.code.append(("goto", start))
        self.code[jump] = ("unless", len(self.code))

    def visit_Constant(self, node):
        if type(node.value) is not int or node.value > 10**12:
            raise SyntaxError("constant")
        self.code.append(("push", node.value))

    def visit_Name(self, node):
        self.code.append(("load", node.id))

    def visit_UnaryOp(self, node):
        if not isinstance(node.op, ast.USub):
            raise SyntaxError("operator")
        self.visit(node.operand)
        self.code.append(("neg", None))

    def visit_BinOp(self, node):
        if type(node.op).__name__ not in ("Add", "Sub", "Mult", "FloorDiv", "Mod"):
            raise SyntaxError("operator")
        self.visit(node.left)
        self.visit(node.right)
        self.code.append(("two", type(node.op).__name__))

    def visit_Compare(self, node):
        (kind,), (right,) = node.ops, node.comparators
        if type(kind).__name__ not in ("Lt", "LtE", "Gt", "GtE", "Eq", "NotEq"):
            raise SyntaxError("operator")
        self.visit(node.left)
        self.visit(right)
        self.code.append(("two", type(kind).__name__))


def two(kind, a, b):
    if kind in ("FloorDiv", "Mod"):
        return divmod(a, b)[kind == "Mod"]
    order = (a > b) - (a < b)
    return {"Add": lambda: a + b, "Sub": lambda: a - b, "Mult": lambda: a * b,
            "Lt": lambda: int(order < 0), "LtE": lambda: int(order <= 0),
            "Gt": lambda: int(order > 0), "GtE": lambda: int(order >= 0),
            "Eq": lambda: int(order == 0), "NotEq": lambda: int(order != 0)}[kind]()


def execute(code, left):
    at, stack, names = 0, [], {}
    while at < len(code):
        what, value = code[at]
        at += 1
        if what == "step":
            left -= 1
            if left < 0:
                raise TimeoutError
        elif what == "push":
            stack.append(value)
        elif what == "load":
            stack.append(names[value])
        elif what == "store":
            names[value] = stack.pop()
        elif what == "neg":
            stack.append(-stack.pop())
        elif what == "goto":
            at = value
        elif what == "unless":
            at = at if stack.pop() else value
        else:
            right, first = stack.pop(), stack.pop()
            stack.append(two(value, first, right))
            if abs(stack[-1]) > 10**12:
                raise OverflowError
    return names["answer"]


def code_reward(program, target, max_steps=1000):
    if len(program) > 200:
        return 0.0
    machine = Machine()
    try:
        machine.visit(ast.parse(program))
        return float(execute(machine.code, max_steps) == target)
    except (SyntaxError, ValueError, LookupError, ArithmeticError, TimeoutError, RecursionError,
            MemoryError):
        return 0.0
'''

_TRY = "if len(program) > 200:\n            return 0.0\n        "
MUTANTS = (
    Mutant("never", 'float(names["answer"] == target)', "0.0", "never paid"),
    Mutant("always", 'float(names["answer"] == target)', "1.0", "always paid"),
    Mutant("a bool", 'float(names["answer"] == target)', 'names["answer"] == target', "not a float"),
    Mutant("magnitude", 'float(names["answer"] == target)',
           'float(abs(names["answer"]) == abs(target))', "always paid"),
    Mutant("truth", 'float(names["answer"] == target)',
           'float(bool(names["answer"]) and names["answer"] == target)', "zero"),
    Mutant("last value", 'float(names["answer"] == target)',
           'float(list(names.values())[-1] == target)', "last value"),
    Mutant("first value", "names[node.targets[0].id] = value(node.value)",
           "names.setdefault(node.targets[0].id, value(node.value))", "first value"),
    Mutant("python runs it", "tree = ast.parse(program)",
           "space = {}; exec(program, space); return float(space['answer'] == target)", "calls"),
    Mutant("without builtins", "tree = ast.parse(program)",
           "space = {}; exec(program, {'__builtins__': {}}, space); "
           "return float(space['answer'] == target)", "attributes"),
    Mutant("truncates", "ast.FloorDiv: operator.floordiv",
           "ast.FloorDiv: (lambda a, b: int(a / b))", "floor"),
    Mutant("rest as in C", "ast.Mod: operator.mod", "ast.Mod: (lambda a, b: int(math.fmod(a, b)))",
           "modulo"),
    Mutant("swapped", "value(node.left), value(node.right)", "value(node.right), value(node.left)",
           "sides"),
    Mutant("no minus", "return -value(node.operand)", "return value(node.operand)", "unary minus"),
    Mutant("while > 0", "if value(node.test) == 0:", "if value(node.test) <= 0:", "condition"),
    Mutant("do while", "tick()\n                if value(node.test) == 0:\n                    break"
           "\n                run(node.body)", "run(node.body)\n                tick()\n"
           "                if value(node.test) == 0:\n                    break", "condition"),
    Mutant("powers", "ast.Mod: operator.mod", "ast.Mod: operator.mod, ast.Pow: operator.pow",
           "powers"),
    Mutant("division", "ast.Mod: operator.mod", "ast.Mod: operator.mod, ast.Div: operator.truediv",
           "true division"),
    Mutant("shifts", "ast.Mod: operator.mod", "ast.Mod: operator.mod, ast.LShift: operator.lshift",
           "other operators"),
    Mutant("booleans", "type(node.value) is int and", "isinstance(node.value, int) and",
           "constants"),
    Mutant("floats", "type(node.value) is int and", "type(node.value) in (int, float) and",
           "constants"),
    Mutant("chains", "len(node.ops) == 1", "len(node.ops) >= 1", "chain"),
    Mutant("several targets", "len(node.targets) == 1", "len(node.targets) >= 1", "targets"),
    Mutant("else", "not node.orelse", "True", "else"),
    Mutant("lazy", "if not allowed(node):",
           "if not (allowed(node) or any(node is n for w in tree.body if type(w) is ast.While "
           "for b in w.body for n in ast.walk(b))):", "not reached"),
    Mutant("unknown names", "return names[node.id]", "return names.get(node.id, 0)",
           "unknown name"),
    Mutant("no answer", 'float(names["answer"] == target)', 'float(names.get("answer", 0) == '
           'target)', "no answer"),
    Mutant("nothing caught", "except Exception:", "except ArithmeticError:", "raises"),
    Mutant("syntax caught", "except Exception:", "except SyntaxError:", "raises"),
    Mutant("parsed outside", "except Exception:", "except (Refused, SyntaxError, ArithmeticError):",
           "raises"),
    Mutant("no step limit", "if steps > max_steps:", "if False:", "no step limit"),
    Mutant("a step too few", "if steps > max_steps:", "if steps >= max_steps:", "too strict"),
    Mutant("a step too many", "if steps > max_steps:", "if steps > max_steps + 1:", "off by one"),
    Mutant("tests are free", "while True:\n                tick()", "while True:",
           "off by one"),
    Mutant("no size", "if abs(number) > 10**12:", "if False:", "no size limit"),
    Mutant("size strict", "if abs(number) > 10**12:", "if abs(number) >= 10**12:",
           "size too strict"),
    Mutant("no length", _TRY, "", "no length limit"),
    Mutant("length strict", "len(program) > 200", "len(program) >= 200", "length too strict"),
    Mutant("no return", "return float(", "float(", "not a float"),
    Mutant("hole", "binary = {", "raise NotImplementedError('your code here'); binary = {",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (GENERATED, COMPILED)
