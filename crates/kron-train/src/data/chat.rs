//! [`ChatTemplate`]: a model's layout of a conversation, in the language of Jinja.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use super::conventions::Conventions;
use super::tokenizer::MAX_TEXT;
use crate::error::{Result, invalid};

/// Work that a template may do: instructions, and 64 bytes of data for each.
const FUEL: u64 = 1 << 18;
/// Longest template in bytes; known ones have up to 20 KiB.
const MAX_TEMPLATE: usize = 1 << 16;
/// Stack of the library, which recurses with the depth of a template and of its values; what is not used costs nothing.
const STACK: usize = 512 << 20;
/// Name in the messages of errors.
const NAME: &str = "chat_template";

/// Message of a conversation.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Speaker: `system`, `user`, `assistant`, or another that the template knows.
    pub role: String,
    /// Text.
    pub content: String,
}

/// Layout of a conversation, which stays within bounds of work and memory whatever the template is.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles the template of a model.
    ///
    /// # Errors
    /// The model has none, or it is malformed or too long.
    pub fn of(conventions: &Conventions) -> Result<Self> {
        let Conventions { chat_template, bos_token, eos_token, .. } = conventions;
        match chat_template {
            Some(source) => Self::new(source.clone(), bos_token.clone(), eos_token.clone()),
            None => Err(invalid("the model has no chat template, but a conversation needs one")),
        }
    }

    /// Compiles a template with the settings of Hugging Face's library.
    ///
    /// # Errors
    /// The template is malformed or too long.
    pub fn new(source: String, bos_token: String, eos_token: String) -> Result<Self> {
        let malformed = |e: Error| invalid(format!("the model's chat template is malformed: {e}"));
        if source.len() > MAX_TEMPLATE {
            let len = source.len();
            return Err(invalid(format!(
                "the model's chat template has {len} bytes, but at most {MAX_TEMPLATE}"
            )));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(malformed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        on_own_stack(|| environment.add_template_owned(NAME, source).map_err(malformed))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Renders a conversation; if an answer follows, with the beginning of an assistant's message after it.
    ///
    /// # Errors
    /// The template refuses the conversation, or its work or its text is too large.
    pub fn render(&self, messages: &[Message], answer_follows: bool) -> Result<String> {
        let refused = |e: Error| invalid(format!("the model's chat template refuses a conversation: {e}"));
        let text = on_own_stack(|| {
            let values = context! {
                messages => Serde(messages),
                add_generation_prompt => answer_follows,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
                // Templates compare these with `none`; an undefined value would differ from it.
                tools => (),
                documents => (),
            };
            let template = self.environment.get_template(NAME);
            template.and_then(|template| template.render(values)).map_err(refused)
        })?;
        match text.len() {
            0..=MAX_TEXT => Ok(text),
            len => Err(invalid(format!(
                "the model's chat template makes a text of {len} bytes, but a text may have {MAX_TEXT}"
            ))),
        }
    }
}

/// Calls the library on a large stack.
fn on_own_stack<T: Send>(call: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, call);
        let thread = thread.map_err(|e| invalid(format!("the chat template got no thread: {e}")))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(invalid("the chat template stopped the library that renders it")))
    })
}

/// Calls a method that Python's values have.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if (value.kind(), method, args.len()) == (ValueKind::String, "join", 1) {
        // The library joins first and charges for the result then.
        let mut len = 0;
        for part in args[0].try_iter()? {
            let Some(part) = part.as_str() else {
                return Err(Error::new(ErrorKind::InvalidOperation, "join takes strings"));
            };
            len += part.len();
            if len > MAX_TEXT {
                return Err(too_large());
            }
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Ends the rendering with the template's own message.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Renders JSON as Python does: with spaces, or with `indent`, and without the escapes of HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let mut text = Bounded(Vec::new());
    let written = match options.get::<Option<usize>>("indent")? {
        Some(spaces @ 0..=16) => json(&mut text, value, PrettyFormatter::with_indent(&[b' '; 16][..spaces])),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson indents by at most 16")),
        None => json(&mut text, value, Spaced),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    String::from_utf8(text.0).map(Value::from).map_err(|_| ErrorKind::BadSerialization.into())
}

fn json(to: &mut Bounded, value: &Value, format: impl Formatter) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(to, format))
}

/// Bytes, at most [`MAX_TEXT`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(io::Error::other(too_large()));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a string has more than {MAX_TEXT} bytes"))
}

/// Layout `{"a": 1, "b": [2, 3]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        to.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn rendered(source: &str, messages: &[Message], answer_follows: bool) -> Result<String, String> {
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into());
        template.and_then(|template| template.render(messages, answer_follows)).map_err(|e| e.to_string())
    }

    /// Templates of four families of models, with the texts that transformers renders.
    #[test]
    fn known_templates_give_the_texts_of_their_formats() {
        let chatml = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let talk = [message("user", " Hi "), message("assistant", "Yes?"), message("user", "Go")];
        let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n";
        assert_eq!(rendered(chatml, &talk, false), Ok(want.into()));
        assert_eq!(rendered(chatml, &talk, true), Ok(format!("{want}<|im_start|>assistant\n")));

        let llama2 = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";
        let want = "<s>[INST] Hi [/INST] Yes? </s><s>[INST] Go [/INST]";
        assert_eq!(rendered(llama2, &talk, true), Ok(want.into()));
        let system = [message("system", "Brief."), message("user", "Hi")];
        let want = "<s>[INST] <<SYS>>\nBrief.\n<</SYS>>\n\nHi [/INST]";
        assert_eq!(rendered(llama2, &system, true), Ok(want.into()));
        let refused = rendered(llama2, &talk[1..], true).expect_err("roles that do not alternate");
        assert!(refused.contains("Conversation roles must alternate"), "{refused}");

        let llama3 = "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n{%- if tools is not none %}\n    {{- 'Tools: ' + (tools | tojson(indent=4)) }}\n{%- endif %}\n{#- Messages #}\n{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n";
        let want = "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
        assert_eq!(rendered(llama3, &talk[..1], true), Ok(want.into()));

        let blocks = "{% for m in messages %}\n  {% if m.role.startswith('u') and m.content is string %}\nU: {{ m.content.split(' ')[-2] }}\n  {% else %}\n    {% continue %}\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(rendered(blocks, &talk[..2], false), Ok("U: Hi\n".into()));
    }

    #[test]
    fn json_is_that_of_python() {
        let talk = [message("user", "<a href='é'> & \"b\"")];
        let want = r#"[{"role": "user", "content": "<a href='é'> & \"b\""}]"#;
        assert_eq!(rendered("{{ messages | tojson }}", &talk, false), Ok(want.into()));
        let want = "{\n  \"a\": [\n    1,\n    true,\n    null\n  ],\n  \"b\": {}\n}";
        assert_eq!(
            rendered("{{ {'a': [1, true, none], 'b': {}} | tojson(indent=2) }}", &talk, false),
            Ok(want.into())
        );
        assert!(rendered("{{ 1 | tojson(indent=17) }}", &talk, false).is_err());
    }

    /// The stack suffices for the deepest expression of a template of the longest size.
    #[test]
    fn the_deepest_templates_end() {
        let deepest = format!("{{{{ {}1 }}}}", "-".repeat(MAX_TEMPLATE - 10));
        assert!(rendered(&deepest, &[], false).is_ok_and(|text| text == "1"));
        let nots = format!("{{{{ {}1 }}}}", "not ".repeat(16_000));
        assert_eq!(rendered(&nots, &[], false), Ok("True".into()));
    }

    /// Every one of them would take the machine's memory, its time or its stack.
    #[test]
    fn hostile_templates_are_refused() {
        let grow = |step: &str| {
            format!(
                "{{% set ns = namespace(x='abcdefgh', l=['abc']) %}}{{% for i in range(100000) %}}{step}{{% endfor %}}"
            )
        };
        let sources = [
            grow("{% set ns.x = ns.x ~ ns.x %}"),
            grow("{% set ns.x = ns.x + ns.x %}"),
            grow("{% set ns.x = ns.x.replace('a', ns.x) %}"),
            grow("{% set ns.x = ns.x | replace('a', ns.x) %}"),
            grow("{% set ns.l = ns.l + ns.l %}{% set ns.x = ''.join(ns.l) %}"),
            grow("{% set ns.l = ns.l + ns.l %}{% set ns.x = ns.l | join(ns.x) %}"),
            grow("{% set ns.l = [ns.l, ns.l] %}{% set ns.x = ns.l | tojson %}"),
            grow("{% set ns.l = [ns.l, ns.l] %}{% set ns.x = ns.l | string %}"),
            grow("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}"),
            grow("{% set ns.l = [ns.l] %}"),
            grow("{{ ns.x }}{% set ns.x = ns.x * 1000 %}"),
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into(),
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
            "{{ 'x' * 1000000 }}".into(),
            "{{ ''.join(['x' * 60000] * 1000) }}".into(),
            "{% include 'chat_template' %}".into(),
            format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
            format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
            format!("{}{}", "{% if 1 %}".repeat(100_000), "{% endif %}".repeat(100_000)),
            "{{".into(),
            "{% generation %}".into(),
            "{{ messages[0].content.strip(1, 2, 3) }}".into(),
            "{{ nothing.of.it }}".into(),
        ];
        for source in sources {
            let shown: String = source.chars().take(160).collect();
            let message = rendered(&source, &[message("user", "Hi")], true).expect_err(&shown);
            assert!(message.contains("chat template") && message.len() < 800, "{shown}: {message}");
        }
    }
}
