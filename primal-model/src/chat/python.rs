//! What the templates of `transformers` use beyond Jinja: functions and filters of Python's, its
//! `%` on texts, and a block that marks what a model says.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

/// The filter that stands for `text % values`.
const FORMAT: &str = "python_format";
/// Widest field of a format.
const MAX_WIDTH: usize = 1000;

/// Adds the functions and filters.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        strftime(&format, now.map_or(0, |it| it.as_secs()))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter(FORMAT, format);
}

/// A template with `text % values` as a filter and the block `generation` as one that is always
/// there.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
        // A comment before it may hold anything.
        if let Some(comment) = rest.find("{#").filter(|comment| *comment < at) {
            let end = rest[comment..]
                .find("#}")
                .map_or(rest.len(), |end| comment + end + 2);
            out += &rest[..end];
            rest = &rest[end..];
            continue;
        }
        let (before, tag) = rest.split_at(at);
        out += before;
        let close = if tag.starts_with("{%") { "%}" } else { "}}" };
        let end = tag_end(tag, close);
        let tag = &tag[..end];
        out += &percent(&generation(tag));
        rest = &rest[at + end..];
    }
    out + rest
}

/// Length of a tag with its ends; texts in it may hold what looks like one.
fn tag_end(tag: &str, close: &str) -> usize {
    let mut quote = None;
    let mut chars = tag.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => {
                chars.next();
            }
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if tag[at..].starts_with(close) => return at + close.len(),
            None => {}
        }
    }
    tag.len()
}

fn generation(tag: &str) -> String {
    let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
    let word = inner.trim_matches(['-', '+']).trim();
    match word {
        "generation" => tag.replacen("generation", "if true", 1),
        "endgeneration" => tag.replacen("endgeneration", "endif", 1),
        _ => tag.to_owned(),
    }
}

/// `'..' % operand` in a tag as `'..'|python_format(operand)`.
fn percent(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let (mut at, bytes) = (0, tag.as_bytes());
    while at < bytes.len() {
        if !matches!(bytes[at], b'\'' | b'"') {
            let next = tag[at..].chars().next().map_or(1, char::len_utf8);
            out += &tag[at..at + next];
            at += next;
            continue;
        }
        let end = text_end(tag, at);
        out += &tag[at..end];
        at = end;
        let after = tag[at..].trim_start();
        let Some(operand) = after
            .strip_prefix('%')
            .filter(|rest| !rest.starts_with('}'))
        else {
            continue;
        };
        let operand = operand.trim_start();
        let len = operand_len(operand);
        if len == 0 {
            continue;
        }
        let inside = percent(&operand[..len]);
        let inside = match inside.strip_prefix('(').and_then(|it| it.strip_suffix(')')) {
            Some(list) if balanced_len(&operand[..len]) == len => list.to_owned(),
            _ => inside,
        };
        out += &format!("|{FORMAT}({inside})");
        at = tag.len() - operand.len() + len;
    }
    out
}

/// Where the text that begins at `at` ends.
fn text_end(tag: &str, at: usize) -> usize {
    let open = tag.as_bytes()[at];
    let mut end = at + 1;
    while let Some(byte) = tag.as_bytes().get(end) {
        end += 1;
        if *byte == b'\\' {
            end += 1;
        } else if *byte == open {
            break;
        }
    }
    let mut end = end.min(tag.len());
    while !tag.is_char_boundary(end) {
        end += 1;
    }
    end
}

/// Length of a name, number, text or bracket with all attributes, calls and items behind it.
fn operand_len(text: &str) -> usize {
    let mut len = match text.bytes().next() {
        Some(b'\'' | b'"') => text_end(text, 0),
        Some(b'(' | b'[' | b'{') => balanced_len(text),
        _ => word_len(text),
    };
    while len > 0 {
        let rest = &text[len..];
        len += match rest.bytes().next() {
            Some(b'(' | b'[') => balanced_len(rest),
            Some(b'.') => 1 + word_len(&rest[1..]),
            _ => break,
        };
    }
    len
}

fn word_len(text: &str) -> usize {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    end.unwrap_or(text.len())
}

/// Length of a bracket with what is in it.
fn balanced_len(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'\'' | b'"' => {
                at = text_end(text, at);
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// `text % values`.
fn format(text: String, values: Rest<Value>) -> Result<String, Error> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| c.is_ascii_alphabetic() || c == '%');
        let Some(end) = end else {
            return Err(invalid("a format ends after '%'".to_owned()));
        };
        let (flags, kind) = (&rest[..end], &rest[end..=end]);
        rest = &rest[end + 1..];
        if kind == "%" {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            return Err(invalid(format!("there is no value for '%{flags}{kind}'")));
        };
        out += &field(flags, kind, value)?;
    }
    if values.next().is_some() {
        return Err(invalid(
            "there are more values than places for them".to_owned(),
        ));
    }
    Ok(out + rest)
}

fn field(flags: &str, kind: &str, value: &Value) -> Result<String, Error> {
    let bad = || invalid(format!("'%{flags}{kind}' cannot show {value}"));
    let sizes = flags.trim_start_matches(['-', '0', '+', ' ']);
    let signs = &flags[..flags.len() - sizes.len()];
    let (width, precision) = match sizes.split_once('.') {
        Some((width, precision)) => (width, Some(precision.parse().unwrap_or(0usize))),
        None => (sizes, None),
    };
    let width = if width.is_empty() {
        0
    } else {
        width.parse().map_err(|_| bad())?
    };
    if width > MAX_WIDTH || precision.is_some_and(|it| it > MAX_WIDTH) {
        return Err(bad());
    }
    let float = || f64::try_from(value.clone()).map_err(|_| bad());
    let text = match kind {
        "s" => {
            let text = python_text(value);
            precision.map_or(text.clone(), |most| text.chars().take(most).collect())
        }
        "r" => match value.as_str() {
            Some(text) => format!("'{text}'"),
            None => python_text(value),
        },
        "d" | "i" => (float()?.trunc() as i64).to_string(),
        "x" => format!("{:x}", float()?.trunc() as i64),
        "f" => format!("{:.*}", precision.unwrap_or(6), float()?),
        _ => return Err(bad()),
    };
    let text = if signs.contains('+') && kind != "s" && !text.starts_with('-') {
        format!("+{text}")
    } else {
        text
    };
    let missing = width.saturating_sub(text.chars().count());
    Ok(if signs.contains('-') {
        text + &" ".repeat(missing)
    } else if signs.contains('0') && kind != "s" {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
        format!("{sign}{}{digits}", "0".repeat(missing))
    } else {
        " ".repeat(missing) + &text
    })
}

fn python_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        _ => value.to_string(),
    }
}

/// As `json.dumps` writes it, with the options that templates give.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(usize::try_from(indent)?.min(MAX_WIDTH)),
        _ => None,
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        _ => (comma.to_owned(), ": ".to_owned()),
    };
    let mut writer = JsonWriter {
        out: String::new(),
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        comma,
        colon,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.out))
}

struct JsonWriter {
    out: String,
    ascii: bool,
    sort: bool,
    indent: Option<usize>,
    comma: String,
    colon: String,
}

impl JsonWriter {
    /// How deep values may lie in each other.
    const MAX_DEPTH: usize = 64;

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JsonWriter::MAX_DEPTH {
            return Err(invalid("a value is too deep for JSON".to_owned()));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => {
                let text = value.to_string();
                self.out += &text;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key.to_string(), value.get_item(&key)?));
                }
                if self.sort {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list("{", "}", entries.len(), depth, &mut |writer, at| {
                    let (key, value) = &entries[at];
                    writer.text(key);
                    writer.out += &writer.colon.clone();
                    writer.value(value, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list("[", "]", items.len(), depth, &mut |writer, at| {
                    writer.value(&items[at], depth + 1)
                })?;
            }
            _ => self.text(&value.to_string()),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: &str,
        close: &str,
        len: usize,
        depth: usize,
        item: &mut dyn FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out += open;
        for at in 0..len {
            if at > 0 {
                self.out += &self.comma.clone();
            }
            self.new_line(depth + 1);
            item(self, at)?;
        }
        if len > 0 {
            self.new_line(depth);
        }
        self.out += close;
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out += &" ".repeat(indent * depth);
        }
    }

    fn text(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ascii {
            self.out += &quoted;
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                self.out += &format!("\\u{unit:04x}");
            }
        }
    }
}

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time in seconds since 1970, in UTC, as `strftime` shows it.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let weekday = DAYS[(days as usize + 3) % 7];
    let month_name = MONTHS[month - 1];
    let half = hour % 12;
    let half = if half == 0 { 12 } else { half };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let two = |number: u64| {
            if bare {
                number.to_string()
            } else {
                format!("{number:02}")
            }
        };
        out += &match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month as u64),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(half),
            Some('M') => two(minute),
            Some('S') => two(second % 60),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('j') => {
                let first = days - day_of_year(year, month, day);
                format!("{:03}", days - first + 1)
            }
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(invalid(format!("strftime_now does not know %{other}"))),
            None => return Err(invalid("a format of strftime_now ends after %".to_owned())),
        };
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: usize) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the year before a day of it.
fn day_of_year(year: u64, month: usize, day: u64) -> u64 {
    (1..month).map(|month| month_days(year, month)).sum::<u64>() + day - 1
}

/// Year, month from 1 and day from 1 of a day since 1970.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 1;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_python_shows_them() {
        // 2024-02-29 was a Thursday, day 60 of its year; 13:05:09.
        let at = 1_709_211_909;
        for (format, expected) in [
            ("%d %B %Y", "29 February 2024"),
            ("%Y-%m-%d", "2024-02-29"),
            ("%a %b %-d %y, %j", "Thu Feb 29 24, 060"),
            ("%I:%M:%S %p", "01:05:09 PM"),
            ("%A %H", "Thursday 13"),
        ] {
            assert_eq!(strftime(format, at).unwrap(), expected);
        }
        assert_eq!(strftime("%F %T", 0).unwrap(), "1970-01-01 00:00:00");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn what_is_no_format_stays() {
        for source in [
            "100% {{ a % b }} {# '%s' % x {{ #} {% if 'a' %}{% endif %}",
            "{{ '%}' }}{% if x == '%' %}",
            "{{ 'unclosed",
            "{% raw",
            "{{ \"é\\\"%s\" }}",
        ] {
            assert_eq!(rewrite(source), source);
        }
        assert_eq!(
            rewrite("{{ 'a%s' % b.c[0](1).d + 2 }}"),
            "{{ 'a%s'|python_format(b.c[0](1).d) + 2 }}"
        );
        assert_eq!(
            rewrite("{{ 'a' % ('b' % (1,)) }}"),
            "{{ 'a'|python_format('b'|python_format(1,)) }}"
        );
        assert_eq!(
            rewrite("{{ 'a' % (x)[0] }}"),
            "{{ 'a'|python_format((x)[0]) }}"
        );
    }
}
