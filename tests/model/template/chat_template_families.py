"""Whole templates, written for this test in the style of the published families."""
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather <now> & 'here'",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "A city"},
            "days": {"type": ["integer", "null"], "enum": [1, 2], "default": 1}},
            "required": ["city"]}}}
CALL = {"id": "c1", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "opts": {"a": [True, None]}}}}
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi <|im_end|> \n"},
     {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"}, {"role": "user", "content": "More"}],
    [{"role": "user", "content": "Weather?"},
     {"role": "assistant", "content": "", "reasoning_content": "call it", "tool_calls": [CALL, CALL]},
     {"role": "tool", "content": "{\"t\": 3}", "tool_call_id": "c1"}, {"role": "tool", "content": "4"},
     {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": " then?"}]}],
]

CHATML_TOOLS = r"""
{%- macro text_of(content) -%}
    {%- if content is string -%}{{- content -}}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}{%- if part.type == 'text' -%}{{- part.text -}}{%- endif -%}{%- endfor -%}
    {%- elif content is none or content is undefined -%}
    {%- else -%}{{- raise_exception('content of an unknown type') -}}
    {%- endif -%}
{%- endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- text_of(messages[0].content) + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + text_of(messages[0].content) + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not (text_of(message.content).startswith('<tool_response>') and text_of(message.content).endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text_of(message.content) %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
                {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""

XML_TOOLS = r"""
{% macro extra_keys(dict, handled) %}
    {%- if dict is mapping %}
        {%- for key in dict if key not in handled %}
            {%- if dict[key] is mapping or (dict[key] is sequence and dict[key] is not string) %}
                {{- '\n<' ~ key ~ '>' ~ (dict[key] | tojson | safe) ~ '</' ~ key ~ '>' }}
            {%- else %}
                {{- '\n<' ~ key ~ '>' ~ (dict[key] | string) ~ '</' ~ key ~ '>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}
{%- for tool in tools or [] %}
    {%- set tool = tool.function if tool.function is defined else tool %}
    {{- "\n<function>\n<name>" ~ tool.name ~ "</name>" }}
    {%- for name, fields in tool.parameters.properties|items %}
        {{- '\n<parameter>\n<name>' ~ name ~ '</name>\n<type>' ~ (fields.type | string) ~ '</type>' }}
        {{- extra_keys(fields, ['name', 'type']) }}
    {%- endfor %}
    {{- extra_keys(tool.parameters, ['type', 'properties']) }}
{%- endfor %}
{% for m in messages %}
    {%- if m.tool_calls is defined and m.tool_calls is iterable and m.tool_calls | length > 0 %}
        {%- for c in m.tool_calls %}
            {{- '\n<tool_call>\n<function=' + c.function.name + '>\n' }}
            {%- for k, v in c.function.arguments|items %}
                {{- '<parameter=' + k + '>\n' }}
                {%- set v = v | tojson | safe if v is mapping or (v is sequence and v is not string) else v | string %}
                {{- v }}{{- '\n</parameter>\n' }}
            {%- endfor %}
        {%- endfor %}
    {%- endif %}
[{{ m['role'] }}]{{ m['content'] if m['content'] is string }}
{% endfor %}
"""

DEEP = r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + (message['content'] if message['content'] is string else message['content']|map(attribute='text')|join(''))}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{'<|Assistant|><|calls|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments']|tojson + '\n' + '```'}}{%- set ns.is_first = true -%}{%- else %}{{'\n' + tool['type'] + '<|sep|>' + tool['function']['name']}}{%- endif %}{%- endfor %}{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + eos_token}}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{'<|out|>' + message['content'] + '<|end|>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}
"""

HARMONY = r"""
{%- macro type_of(spec, required, nested=false) -%}
    {%- if spec.type is defined and spec.type is string and spec.type in ("integer", "number") -%}number
    {%- elif spec.type is iterable and spec.type is not string -%}{{- spec.type | join(" | ") -}}
    {%- elif spec.type == "object" -%}{ {% for k, v in spec.properties.items() -%}{{ k }}{{ "" if k in (spec.required or []) else "?" }}: {{ type_of(v, [], nested=true) }}{{ ", " if not loop.last }}{%- endfor %} }
    {%- else -%}{{ spec.type }}{%- if nested %} {# nested #}{% endif -%}
    {%- endif -%}
{%- endmacro -%}
<|start|>system<|message|>{{ "Knowledge cutoff: 2024-06\nCurrent date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
{%- if reasoning_effort is not defined %}{% set reasoning_effort = "medium" %}{% endif %}
{{- "Reasoning: " ~ reasoning_effort ~ "<|end|>" }}
{%- if tools -%}
{{ "<|start|>developer<|message|>namespace functions {\n" }}
{%- for tool in tools %}{% set tool = tool.function %}
{{ "// " + tool.description + "\ntype " + tool.name + " = (_: " + type_of(tool.parameters, tool.parameters.required) + ") => any;\n" }}
{%- endfor %}}{%- endif -%}
{%- set last = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "tool_calls" in message and message.tool_calls -%}
            {%- if message.content and message.reasoning_content %}{{ raise_exception("both") }}{% endif -%}
            {%- set call = message.tool_calls[0].function %}
            {{- "<|start|>assistant to=functions." ~ call.name ~ "<|channel|>commentary json<|message|>" ~ call.arguments|tojson ~ "<|call|>" }}
            {%- set last.name = call.name %}
        {%- elif loop.last and not add_generation_prompt -%}{% generation %}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|return|>{% endgeneration %}
        {%- else -%}<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {%- if last.name is none %}{{ raise_exception("no call before") }}{% endif %}
        {{- "<|start|>functions." + last.name }}{{ " to=assistant<|message|>" + message.content|tojson + "<|end|>" -}}
    {%- elif message.content is string -%}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
    {%- else -%}{% for c in message.content if c.type == 'text' %}{{ c.text }}{% else %}?{% endfor %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""

PLAIN = r"""{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}
{% elif message['role'] == 'user' %}
{{ '<|user|>\n' ~ message['content'] ~ '\n' }}
  {% elif message['role'] == 'assistant' and not loop.last %}
    {{ '<|assistant|>\n' + message['content']|trim + eos_token + '\n' }}
  {% endif %}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
{% endfor %}
"""

OBSERVATION = r"""[gMASK]<sop>
{%- if tools -%}<|system|>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}{%- endif -%}
{%- macro visible(content) -%}
{%- if content is string %}{{- content }}{%- elif content is iterable and content is not mapping -%}
{%- for item in content -%}{%- if item is mapping and item.type == 'text' -%}{{- item.text }}{%- elif item is string -%}{{- item }}{%- endif -%}{%- endfor -%}
{%- else %}{{- content }}{%- endif -%}{%- endmacro -%}
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{% set ns.last_user = loop.index0 -%}{%- endif %}{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ visible(m.content) }}{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}<|assistant|>
{%- set content = visible(m.content) %}
{%- if loop.index0 > ns.last_user and m.reasoning_content -%}{{ '\n<think>' + m.reasoning_content.strip() + '</think>' }}{%- else -%}{{ '\n<think></think>' }}{%- endif -%}
{%- if content.strip() -%}{{ '\n' + content.strip() }}{%- endif -%}
{% for tc in m.tool_calls or [] %}{{ '\n<tool_call>' + tc.function.name }}
{% for k, v in tc.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}
{%- elif m.role == 'tool' -%}{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|observation|>' }}{%- endif %}{{- '\n<tool_response>\n' }}{{- m.content }}{{- '\n</tool_response>' -}}
{%- elif m.role == 'system' -%}<|system|>
{{ visible(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

TEMPLATES = {"chatml": CHATML_TOOLS, "xml": XML_TOOLS, "deep": DEEP, "harmony": HARMONY,
             "plain": PLAIN, "observation": OBSERVATION}


def cases():
    for name, template in TEMPLATES.items():
        for chat in CHATS:
            for tools in (None, [TOOL, TOOL]):
                for extra in ({"add_generation_prompt": True},
                              {"add_generation_prompt": False, "enable_thinking": False}):
                    yield name, template, {"messages": chat, "tools": tools, "bos_token": "<s>",
                                           "eos_token": "</s>", **extra}
