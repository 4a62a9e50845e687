//! The attribute `#[test]` of the harness. A procedural macro needs a separate crate.

use proc_macro::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// Registers a function as a test of [`harness::main`](../harness/fn.main.html), which finds it at
/// run time. It takes the place of the compiler's own `#[test]`, and knows `#[ignore]`, with a
/// reason or without.
#[proc_macro_attribute]
pub fn test(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut function = TokenStream::new();
    let mut ignored = TokenStream::new();
    let mut name = None;
    let mut tokens = item.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if let (TokenTree::Punct(hash), Some(TokenTree::Group(attribute))) = (&token, tokens.peek())
            && hash.as_char() == '#'
            && is_ignore(attribute)
        {
            // `ignore`, or `ignore = "reason"`.
            ignored = attribute.stream().into_iter().skip(2).collect();
            if ignored.is_empty() {
                ignored = literal("ignored");
            }
            tokens.next();
            continue;
        }
        if let (TokenTree::Ident(word), Some(TokenTree::Ident(next))) = (&token, tokens.peek())
            && word.to_string() == "fn"
            && name.is_none()
        {
            name = Some(next.clone());
        }
        function.extend([token]);
    }
    match name {
        Some(name) => function.extend(registration(&name, ignored)),
        None => function.extend(parse("::core::compile_error!(\"#[test] is for functions\");")),
    }
    function
}

fn is_ignore(attribute: &Group) -> bool {
    attribute.delimiter() == Delimiter::Bracket
        && attribute.stream().into_iter().next().is_some_and(|word| word.to_string() == "ignore")
}

/// `harness::register!(name, "reason");`
fn registration(name: &Ident, ignored: TokenStream) -> TokenStream {
    let mut arguments = TokenStream::from(TokenTree::Ident(name.clone()));
    if !ignored.is_empty() {
        arguments.extend(parse(","));
        arguments.extend(ignored);
    }
    let mut call = parse("::harness::register!");
    call.extend([TokenTree::Group(Group::new(Delimiter::Parenthesis, arguments))]);
    call.extend(parse(";"));
    call
}

fn literal(text: &str) -> TokenStream {
    TokenTree::Literal(proc_macro::Literal::string(text)).into()
}

fn parse(code: &str) -> TokenStream {
    // Only the constants above are parsed.
    code.parse().unwrap_or_default()
}
