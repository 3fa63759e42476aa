# Runs the tests. The program is in another interpreter: what it defines is seen from here as names whose calls go there and whose
# values come back as data. It ends with 0 if the last line of the tests is reached, else with 1, or with 3 if the program is gone.


def judge():
    line, leave = Line(), os._exit
    functions, exceptions = [], {}

    class Remote:
        """Something that stays with the program. It is equal to nothing but what the program has too."""
        __slots__ = ('_index', '_is_type')

        def __init__(self, index, is_type):
            object.__setattr__(self, '_index', index)
            object.__setattr__(self, '_is_type', is_type)

        def __call__(self, *args, **named):
            return ask(self, 'call', args, named)

        def __getattr__(self, name):
            if name.startswith('__') and name not in ('__name__', '__doc__'):
                raise AttributeError(name)
            return ask(self, 'attribute', (name,))

        def __setattr__(self, name, value):
            ask(self, 'set attribute', (name, value))

        def __setitem__(self, key, value):
            ask(self, 'set item', (key, value))

        def __getitem__(self, key):
            return ask(self, 'item', (key,))

        def __len__(self):
            return ask(self, 'length')

        def __iter__(self):
            return ask(self, 'iterate')

        def __next__(self):
            return ask(self, 'next')

        def __contains__(self, value):
            return any(v is value or v == value for v in self)

        def __bool__(self):
            return ask(self, 'truth') is True

        def __str__(self):
            return str(ask(self, 'text'))

        def __eq__(self, other):
            return type(other) is Remote and (other._index == self._index or ask(self, 'equal', (other,)) is True)

        def __hash__(self):
            return self._index

        def __instancecheck__(self, value):
            return type(value) is Remote and ask(self, 'is instance', (value,)) is True

    known = {}

    def remote(tag, content):
        if tag != 'h':
            raise ValueError('not a value: ' + tag)
        index, is_type = content
        # An iterator that is its own iterator must be the same object here.
        return known.setdefault(int(index), Remote(int(index), is_type is True))

    def handle(value):
        if type(value) is Remote:
            return {'h': value._index}
        if callable(value):
            functions.append(value)
            return {'g': len(functions) - 1}
        raise TypeError('the tests give the program a ' + type(value).__name__)

    out = lambda value: encode(value, handle, BUILTINS)
    back = lambda data: decode(data, remote, TYPES)

    def gone(what):
        # Not an exception: the tests must not catch it.
        os.write(2, ('\n' + what + '\n').encode())
        leave(3)

    def receive():
        try:
            message = line.receive()
        except BaseException as error:
            message = None
            os.write(2, ('\nits answer cannot be read: ' + type(error).__name__ + '\n').encode())
            leave(1)
        if not isinstance(message, dict):
            gone('it left before its end')
        return message

    def fail(error):
        base, text, name, index = error
        kind = getattr(builtins, base, Exception)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            kind = Exception
        if index is not None:
            kind = exception(base, name, index)
        try:
            raised = kind(text)
        except TypeError:
            raised = Exception(base + ': ' + text)
        raise raised

    def exception(base, name, index):
        parent = getattr(builtins, base, Exception)
        if not (isinstance(parent, type) and issubclass(parent, BaseException)):
            parent = Exception
        return exceptions.setdefault(index, type(str(name), (parent,), {}))

    def reply():
        while True:
            message = receive()
            if 'call back' in message:
                try:
                    function = functions[message['call back']]
                    args = [back(a) for a in message['args']]
                    answer = {'value': out(function(*args, **{k: back(v) for k, v in message['named'].items()}))}
                except Exception as error:
                    answer = {'raise': [type(error).__name__, str(error)]}
                line.send(answer)
            elif 'raise' in message:
                fail(message['raise'])
            else:
                return message

    def ask(of, what, args=(), named={}):
        request = {'of': of._index, 'do': what, 'args': [out(a) for a in args], 'named': {k: out(v) for k, v in named.items()}}
        line.send(request)
        message = reply()
        value = back(message['value'])
        if what == 'call':
            for old, new in zip(args, message['args']):
                if new is not None and type(old) in MUTABLE:
                    refill(old, back(new))
        if what == 'length' and type(value) is not int:
            raise TypeError('a length is an integer')
        return value

    class Names(dict):
        """What the tests see: their own names, Python's, and the program's. The program cannot put its own in the place of Python's,
        unless the tests call nothing else of it."""

        def __missing__(self, name):
            if name in offered and (not hasattr(builtins, name) or name in shadowing):
                # A module by its own name is that module, whatever the program has put in its place.
                if name in MODULES and name in consulted:
                    return __import__('importlib').import_module(name)
                line.send({'name': name})
                message = reply()
                if 'module' in message:
                    if message['module'] in MODULES:
                        return __import__('importlib').import_module(message['module'])
                    raise NameError(name)
                if 'exception' in message:
                    return exception(*message['exception'])
                return back(message['value'])
            if name in ('eval', 'exec', 'compile'):
                raise NameError('the tests may not run text here, which may be the program\'s: ' + name)
            if hasattr(builtins, name):
                return getattr(builtins, name)
            raise NameError('name %r is not defined' % name)

    source = line.text()
    try:
        offered = set(reply()['names'])
        code = compile(source, 'tests.py', 'exec')

        def used(code):
            for constant in code.co_consts:
                if isinstance(constant, types.CodeType):
                    yield from used(constant)
            yield from code.co_names

        ast = __import__('ast')
        tree = ast.walk(ast.parse(source))
        consulted = {n.value.id for n in tree if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
        wanted = {n for n in used(code) if n in offered}
        shadowing = wanted if all(hasattr(builtins, n) for n in wanted) else set()
        names = Names()
        exec(code, names)
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        leave(1)
    leave(0)


judge()
