# Runs the program, then answers what the judge asks: values of names, calls, attributes. It shares its interpreter with the program,
# so nothing that it says is believed: whatever arrives at the judge is data.


def candidate():
    line, objects, leave = Line(), [], os._exit

    def handle(value):
        index = next((i for i, (known) in enumerate(objects) if known is value), None)
        if index is None:
            index = len(objects)
            objects.append(value)
        return {'h': [index, isinstance(value, type)]}

    def callback(tag, content):
        if tag == 'h':
            return objects[content]

        def stub(*args, **named):
            line.send({'call back': content, 'args': [out(a) for a in args], 'named': {k: out(v) for k, v in named.items()}})
            return answer()
        return stub

    out = lambda value: encode(value, handle, TYPES)
    back = lambda data: decode(data, callback, BUILTINS)

    def answer():
        # A call of the judge's function ends with its value, and may ask something before.
        while True:
            message = line.receive()
            if message is None:
                leave(0)
            if 'value' in message:
                return back(message['value'])
            if 'raise' in message:
                raise getattr(builtins, message['raise'][0], Exception)(message['raise'][1])
            serve(message)

    def failure(error):
        kind = type(error)
        base = next(c for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c)
        own = None if base is kind else handle(kind)['h'][0]
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        return {'raise': [base.__name__, text, kind.__name__, own]}

    def about(name):
        value = space[name]
        if isinstance(value, types.ModuleType) and value.__name__ in MODULES:
            return {'module': value.__name__}
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(c for c in value.__mro__ if getattr(builtins, c.__name__, None) is c)
            return {'exception': [base.__name__, value.__name__, handle(value)['h'][0]]}
        return {'value': out(value)}

    def do(message):
        if 'name' in message:
            return about(message['name'])
        of = objects[message['of']]
        args = [back(a) for a in message.get('args', [])]
        what = message['do']
        if what == 'call':
            value = of(*args, **{k: back(v) for k, v in message['named'].items()})
            return {'value': out(value), 'args': [out(a) if type(a) in MUTABLE else None for a in args]}
        if what == 'is instance':
            return {'value': isinstance(args[0], of)}
        operations = {
            'attribute': getattr, 'item': lambda o, k: o[k], 'length': len, 'iterate': iter, 'next': next, 'truth': bool,
            'text': str, 'equal': lambda o, other: bool(o == other), 'set attribute': setattr,
            'set item': lambda o, k, v: o.__setitem__(k, v),
        }
        return {'value': out(operations[what](of, *args))}

    def serve(message):
        try:
            reply = do(message)
        except BaseException as error:
            reply = failure(error)
        line.send(reply)

    source = line.text()
    space = {}
    try:
        exec(compile(source, 'program.py', 'exec'), space)
        line.send({'names': [n for n in space if isinstance(n, str)]})
    except BaseException as error:
        line.send(failure(error))
    while True:
        message = line.receive()
        if message is None:
            leave(0)
        serve(message)


candidate()
