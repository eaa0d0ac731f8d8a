"""Whole templates, written for this test in the style of the published families."""
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather <now> & 'here'",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "A city"},
            "days": {"type": ["integer", "null"], "enum": [1, 2], "default": 1}},
            "required": ["city"]}}}
RICH_TOOL = {"type": "function", "function": {"name": "search", "parameters": {
    "type": "object", "required": ["query"], "properties": {
        "query": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "kind": {"type": "string", "enum": ["web", "Ärzte"], "default": "web"},
        "range": {"type": "object", "properties": {"from": {"type": "integer"}, "to": {
            "type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}}}},
        "any": {}, "flag": {"type": "boolean", "default": False}, "list": {"type": "array", "nullable": True}}}}}
TEXT_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Z\u00fcrich\"}"}}
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
    [{"role": "user", "content": "<tool_response>x</tool_response>"},
     {"role": "assistant", "content": None, "tool_calls": [TEXT_CALL]},
     {"role": "tool", "name": "get_weather", "content": "5"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c\n"},
     {"role": "user", "content": "日本 😀 </think>"}, {"role": "assistant", "content": "partial"}],
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

SECTIONS = r"""
{%- macro part(item) -%}
  {%- if item is string -%}{{ item }}
  {%- elif item is mapping and item.get('type', 'text') == 'text' -%}{{ item['text'] }}
  {%- else -%}{{ raise_exception('a part of an unknown type: ' ~ item.type) }}
  {%- endif -%}
{%- endmacro -%}
{%- macro body(message) -%}
  {%- set c = message.get('content') -%}
  {%- if c is string -%}{{ c }}{%- elif c is not none and c is defined -%}
    {%- for item in c -%}{{ part(item) }}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro open(kind, label) -%}<|{{ kind }}|>{{ label or kind }}<|sep|>{%- endmacro -%}
{%- if tools -%}
  {{ open('system', 'tools') }}{{ tools | tojson(separators=(',', ':')) }}<|end|>
{%- endif -%}
{%- if not messages or messages[0].role != 'system' -%}{{ open('system', '') }}Be helpful.<|end|>{%- endif -%}
{%- set ns = namespace(last_final=-1) -%}
{%- for m in messages[:-1] -%}
  {%- if m.role == 'assistant' and not m.tool_calls -%}{%- set ns.last_final = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- set older = messages[:ns.last_final + 1] -%}
{%- set newer = messages[ns.last_final + 1:] -%}
{%- for group in [older, newer] -%}
  {%- set keeps_thinking = loop.last -%}
  {%- for m in group -%}
    {{ open(m.role, m.name) }}
    {%- if m.role == 'assistant' -%}
      {%- if keeps_thinking -%}<think>{{ m.reasoning_content or '' }}</think>{%- else -%}<think></think>{%- endif -%}
      {{ body(m) }}
      {%- for call in m.tool_calls or [] -%}
        {%- set id = call.id if call.id is defined else 'functions.' ~ call.function.name ~ ':' ~ loop.index0 -%}
        <|call|>{{ id }}<|args|>{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}<|/call|>
      {%- endfor -%}
    {%- elif m.role == 'tool' -%}
      {%- set id = m.tool_call_id | default('?') -%}
      ## Return of {{ id }}
{{ body(m) }}
    {%- else -%}{{ body(m) }}
    {%- endif -%}<|end|>
  {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ open('assistant', '') }}{{ '<think></think>' if enable_thinking is defined and not enable_thinking }}{%- endif -%}
"""

TAGS = r"""{# begin and end of a call #}
{%- set begin, end = '<x:calls>', '</x:calls>' -%}
{%- macro list_tools(space, all) -%}
{%- for t in all -%}
<tool>{{ t.function | tojson(ensure_ascii=False) | string }}</tool>
{% endfor -%}
{%- endmacro -%}
{%- set system = none -%}{%- set rest = messages -%}
{%- if messages and messages[0].role == "system" -%}{%- set system = messages[0] -%}{%- set rest = messages[1:] -%}{%- endif -%}
{%- set ns = namespace(last_user=-1) %}
{% for m in rest %}
    {%- if m.role == 'user' %}
        {% set ns.last_user = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{{- ']~b[' ~ 'system' ~ '\n' }}
{{- (system.content if system and system.content else model_identity | default('Assistant.')) }}
{%- if documents %}
  {%- for doc in documents %}{{ '\n[' ~ loop.index ~ '] ' ~ (doc.title | default('untitled', true)) ~ ': ' ~ doc.text | trim | truncate(20) }}{% endfor %}
{%- endif %}
{%- if tools -%}
{{ '\n<tools>\n' }}{{- list_tools('functions', tools) }}{{- '</tools>' ~ '\n' }}
{{- begin }}
<invoke name="a">
...
</invoke>
{{- '\n' ~ end }}
{%- endif -%}
{{- '[e~[\n' }}

{%- for m in rest -%}
    {%- if m.role == 'assistant' -%}
        {{- ']~b]ai' ~ '\n' }}
        {%- set thought = '' %}{%- set text = m.content if m.content is string else '' %}
        {%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
        {%- elif '</think>' in text %}
            {%- set thought = text.split('</think>')[0].strip('\n').split('<think>')[-1].strip('\n') %}
            {%- set text = text.split('</think>')[-1].strip('\n') %}
        {%- endif %}
        {%- if thought and loop.index0 > ns.last_user -%}{{- '<think>' ~ '\n' ~ thought ~ '\n' ~ '</think>' ~ '\n\n' }}{%- endif -%}
        {%- if text -%}{{- text }}{%- endif -%}
        {%- if m.tool_calls -%}
            {{- begin ~ '\n' }}
            {%- for call in m.tool_calls -%}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<invoke name="' + call.name + '">' }}
                {% set _args = call.arguments %}
                {%- for k, v in _args.items() %}
                {{- '<parameter name="' + k + '">' }}
                {{- v | tojson(ensure_ascii=False) if v is not string else v }}
                {{- '</parameter>' }}
                {% endfor %}
                {{- '</invoke>' ~ '\n' }}
            {%- endfor -%}
            {{- end }}
        {%- endif -%}
        {{- '[e~[' ~ '\n' }}
    {%- elif m.role == 'tool' -%}
    {%- if loop.first or (rest[loop.index0 - 1].role != 'tool') -%}{{- ']~b]tool' }}{%- endif -%}
    {{- '\n<response>' ~ m.content ~ '</response>' }}
    {%- if loop.last or (rest[loop.index0 + 1].role != 'tool') -%}{{- '[e~[\n' -}}{%- endif -%}
    {%- elif m.role == 'user' -%}
        {{- ']~b]user' ~ '\n' }}{{- m.content if m.content is string else m.content | map(attribute='text') | join }}{{- '[e~[' ~ '\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- ']~b]ai' ~ '\n' ~ '<think>' ~ '\n' }}
{%- endif -%}
"""

MARKUP_CALLS = r"""
{%- set add_generation_prompt = add_generation_prompt | default(true) -%}
{%- set thinking = enable_thinking | default(true) -%}
{%- set mark = "｜M｜" -%}
{%- if not tools -%}
  {%- set tools = namespace(value=[]) -%}
  {%- for m in messages -%}
    {%- if m.get('tools') -%}{%- for t in m.tools -%}{%- set _ = tools.value.append(t.function if t.get('function') else t) -%}{%- endfor -%}{%- endif -%}
  {%- endfor -%}
  {%- set tools = tools.value -%}
{%- endif -%}
{%- macro arguments_of(call) -%}
  {%- if call.function.arguments is mapping -%}
    {%- for key, value in call.function.arguments.items() -%}
      {%- if not loop.first -%}{{ "\n" }}{%- endif -%}
      <{{ mark }}parameter name="{{ key }}" string="{{ 'true' if value is string else 'false' }}">{{ value if value is string else (value | tojson(ensure_ascii=False)) }}</{{ mark }}parameter>
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set last = namespace(user=-1) -%}
{%- for m in messages -%}{%- if m.role in ["user", "developer"] -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{{ bos_token }}
{%- set has_system = messages|length > 0 and messages[0].role == "system" -%}
{%- if has_system -%}{{ messages[0].get('content', '') }}{%- endif -%}
{%- for t in tools -%}{{ "\n" }}{{ t | tojson }}{%- endfor -%}
{%- set start = 1 if has_system else 0 -%}
{%- for m in messages[start:] -%}
  {%- set index = loop.index0 + start -%}
  {%- if m.role == "user" -%}
    <｜U｜>{{ m.content }}<｜A｜>{{ '<think>' if index == last.user and thinking else '</think>' }}
  {%- elif m.role == "tool" -%}
    {%- set previous = namespace(value=-1) -%}
    {%- for i in range(index - 1, -1, -1) -%}
      {%- if messages[i].role != "tool" and previous.value == -1 -%}{%- set previous.value = i -%}{%- endif -%}
    {%- endfor -%}
    {%- set order = index - previous.value -%}
    {%- if order == 1 -%}{{ "\n\n" }}<results>{%- endif -%}
    {{ "\n" }}<result>{{ m.content }}</result>
    {%- if order == (messages[previous.value].get('tool_calls', []) | length) -%}{{ "\n" }}</results>{%- endif -%}
  {%- elif m.role == "assistant" -%}
    {%- if thinking and index > last.user -%}{{ m.get('reasoning_content', '') }}</think>{%- endif -%}
    {{ m.get('content', '') }}
    {%- for call in m.get('tool_calls') or [] -%}
{{ "\n" }}<{{ mark }}invoke name="{{ call.function.name }}">{{ "\n" }}{{- arguments_of(call) -}}{{ "\n" }}</{{ mark }}invoke>
    {%- endfor -%}
    {{ eos_token }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<｜A｜>{{ '<think>' if thinking else '</think>' }}{%- endif -%}
"""

# Arguments joined as text: fails for a mapping, as its model's own does.
JOINED = r"""
{%- for m in messages -%}
  {%- if m['role'] == 'user' -%}<U>{{ m['content'] if m['content'] is string else '' }}
  {%- elif m['role'] == 'assistant' and m['tool_calls'] is defined and m['tool_calls'] is not none -%}
    {%- for call in m['tool_calls'] -%}{{ '<call>' + call['function']['name'] + '<sep>' + call['function']['arguments'] + '</call>' }}{%- endfor -%}
  {%- elif m['role'] == 'assistant' -%}
    {%- set content = m['content'] -%}
    {%- if '</think>' in content -%}{%- set content = content.split('</think>', 1)[1] -%}{%- endif -%}<A>{{ content }}
  {%- elif m['role'] == 'tool' -%}<out>{{ m['content'] }}</out>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<A>{{ '<think>' if thinking is defined and thinking }}{%- endif %}"""

# Types of parameters in the manner of TypeScript, by a macro that calls itself.
TYPED = r"""
{%- macro type_of(spec, required, level=0) -%}
  {%- if spec.type == "array" -%}
    {%- if spec['items'] -%}
      {%- set inner = type_of(spec['items'], required, level + 1) -%}
      {{- (inner + "[]") if inner|length < 30 else "any[]" }}
    {%- else -%}any[]{%- endif -%}
    {{- " | null" if spec.nullable }}
  {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
    {{- spec.type | join(" | ") if spec.type | length > 1 else spec.type[0] }}
  {%- elif spec.oneOf -%}
    {%- for variant in spec.oneOf -%}{{- type_of(variant, required, level) -}}{%- if not loop.last %} | {% endif -%}{%- endfor -%}
  {%- elif spec.type == "string" and spec.enum -%}{{- '"' + spec.enum|join('" | "') + '"' -}}
  {%- elif spec.type == "object" and spec.properties -%}
    {{- "{\n" }}
    {%- for name, property in spec.properties.items() -%}
      {{- "  " * level ~ name ~ ("?" if name not in (spec.required or [])) ~ ": " }}
      {{- type_of(property, spec.required or [], level + 1) ~ ("," if not loop.last) ~ "\n" }}
    {%- endfor -%}}
  {%- elif spec.type in ["number", "integer"] -%}number
  {%- else -%}{{ spec.type | default("any") }}
  {%- endif -%}
  {%- if spec.default is defined %} // default: {{ spec.default|tojson }}{% endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
{{ "type " ~ tool.function.name ~ " = (_: " ~ type_of(tool.function.parameters, []) ~ ") => any;" }}
{%- endfor %}
{{ strftime_now("%Y-%m-%d") }} {{ reasoning_effort | default("medium") | upper }}
"""

MUTABLE = {"markup_calls"}
TEMPLATES = {"sections": SECTIONS, "tags": TAGS, "markup_calls": MARKUP_CALLS, "joined": JOINED,
             "typed": TYPED, "chatml": CHATML_TOOLS, "xml": XML_TOOLS, "deep": DEEP, "harmony": HARMONY,
             "plain": PLAIN, "observation": OBSERVATION}


def cases():
    for name, template in TEMPLATES.items():
        for chat in CHATS:
            for tools in (None, [TOOL, RICH_TOOL]):
                for extra in ({"add_generation_prompt": True},
                              {"add_generation_prompt": False, "enable_thinking": False},
                              {"enable_thinking": True, "thinking": True, "reasoning_effort": "high",
                               "documents": [{"title": "A", "text": " x " * 20}, {"text": "y"}]}):
                    yield name, template, {"messages": chat, "tools": tools, "bos_token": "<s>",
                                           "eos_token": "</s>", **extra}
