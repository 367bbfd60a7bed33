//! The sources as the compiler sees them: files, the paths that they name, and where these lead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Longest chain of re-exports that is followed.
const HOPS: usize = 8;

/// A path that a file names.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    /// The module that it is written in.
    module: Vec<String>,
    segments: Vec<String>,
    place: Place,
}

/// Where a path stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Code,
    Use,
    /// A `use` that others may use: it only passes something on.
    PublicUse,
}

impl Name {
    /// As it is written, with braces opened.
    pub(crate) fn text(&self) -> String {
        self.segments.join("::")
    }
}

/// One file below `src`.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its name below `src`.
    pub(crate) file: String,
    /// Lines, tests included.
    pub(crate) lines: usize,
    /// The paths in its code, tests left out.
    pub(crate) names: Vec<Name>,
    /// The methods that it calls, tests left out.
    pub(crate) methods: BTreeSet<String>,
    /// Whether there is unsafe code in it, tests included.
    pub(crate) has_unsafe: bool,
    path: Vec<String>,
    /// What its `use` bind: name -> path.
    bound: BTreeMap<String, Vec<String>>,
}

impl Source {
    /// A name with what a `use` of this file says about its first part.
    pub(crate) fn spelled_out(&self, name: &Name) -> String {
        let bound = name.segments.first().filter(|_| name.place == Place::Code).and_then(|first| self.bound.get(first));
        bound.map_or_else(|| name.text(), |bound| [bound, &name.segments[1..]].concat().join("::"))
    }

    /// The module of the crate that it belongs to.
    pub(crate) fn module(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }
}

/// All files.
#[derive(Debug)]
pub(crate) struct House(BTreeMap<Vec<String>, Source>);

impl House {
    /// Reads and parses what lies below `src`.
    pub(crate) fn read() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        list(&src, &mut files);
        Self::of(files.iter().map(|file| {
            let name = file.strip_prefix(&src).expect("below src").to_string_lossy().replace('\\', "/");
            (name, fs::read_to_string(file).expect("a source is text"))
        }))
    }

    /// Parses files, each with its name below `src`.
    pub(crate) fn of(files: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(files.into_iter().map(|(name, text)| parse(name, &text)).map(|s| (s.path.clone(), s)).collect())
    }

    /// Every file.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }

    /// Files of modules: not the roots of the library and the program.
    pub(crate) fn inner(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|s| !["lib.rs", "main.rs"].contains(&s.file.as_str()))
    }

    /// The module of the crate that a name leads into, without following what that module passes on.
    pub(crate) fn module_of(&self, source: &Source, name: &Name) -> Option<String> {
        let path = self.absolute(&name.module, &name.segments)?;
        let first = path.first()?;
        (self.0.contains_key(&path[..1]) && first != source.module()).then(|| first.clone())
    }

    /// The file that holds what a name means; None if that is not ours, or only passed on.
    pub(crate) fn file_of(&self, source: &Source, name: &Name) -> Option<&str> {
        if name.place == Place::PublicUse {
            return None;
        }
        let mut path = self.absolute(&name.module, &name.segments);
        if path.is_none() {
            let (first, rest) = name.segments.split_first()?;
            let bound = source.bound.get(first)?;
            path = self.absolute(&source.path, &[bound, rest].concat());
        }
        for _ in 0..HOPS {
            let whole = path.take()?;
            let (place, rest) = (0..=whole.len()).rev().find_map(|n| {
                let (place, rest) = whole.split_at(n);
                self.0.get(place).map(|source| (source, rest))
            })?;
            let passed = rest.first().and_then(|item| place.bound.get(item));
            let Some(passed) = passed else { return (!place.path.is_empty()).then_some(&place.file) };
            path = self.absolute(&place.path, &[passed, &rest[1..]].concat());
        }
        None
    }

    /// The crate that a name may come from, if it is not ours. What a `use` has bound counts where that stands.
    pub(crate) fn foreign<'a>(&self, source: &Source, name: &'a Name) -> Option<&'a str> {
        let first = name.segments.first()?;
        let bound = name.place == Place::Code && (name.segments.len() == 1 || source.bound.contains_key(first));
        (!bound && self.absolute(&name.module, &name.segments).is_none()).then_some(first.as_str())
    }

    /// A path from the root of the crate; None if it does not begin here.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module, rest].concat()),
            "super" => {
                let ups = path.iter().take_while(|s| *s == "super").count();
                let kept = module.len().checked_sub(ups)?;
                Some([&module[..kept], &path[ups..]].concat())
            }
            _ => {
                let inside = [module, path].concat();
                self.0.contains_key(&inside[..=module.len()]).then_some(inside)
            }
        }
    }
}

fn list(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            list(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn parse(file: String, text: &str) -> Source {
    let stem = file.trim_end_matches(".rs");
    let path = match stem {
        "lib" => Vec::new(),
        _ => stem.trim_end_matches("/mod").split('/').map(str::to_owned).collect(),
    };
    let mut reader = Reader { module: path, ..Reader::default() };
    let syntax = syn::parse_file(text).unwrap_or_else(|e| panic!("{file}: {e}"));
    reader.visit_file(&syntax);
    let Reader { module: path, names, methods, bound } = reader;
    let has_unsafe = text.parse().is_ok_and(has_unsafe);
    Source { file, lines: text.lines().count(), names, methods, has_unsafe, path, bound }
}

fn has_unsafe(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "unsafe",
        TokenTree::Group(group) => has_unsafe(group.stream()),
        _ => false,
    })
}

/// Collects what a file names.
#[derive(Default)]
struct Reader {
    module: Vec<String>,
    names: Vec<Name>,
    methods: BTreeSet<String>,
    bound: BTreeMap<String, Vec<String>>,
}

impl Reader {
    fn name(&mut self, segments: Vec<String>, place: Place) {
        self.names.push(Name { module: self.module.clone(), segments, place });
    }

    /// Opens the braces of a `use`.
    fn open(&mut self, before: &[String], tree: &syn::UseTree, place: Place) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(p) => self.open(&with(&p.ident), &p.tree, place),
            syn::UseTree::Group(g) => g.items.iter().for_each(|tree| self.open(before, tree, place)),
            syn::UseTree::Glob(_) => self.name(before.to_vec(), place),
            syn::UseTree::Name(n) if n.ident == "self" => self.bind(before.to_vec(), before.last().cloned(), place),
            syn::UseTree::Name(n) => self.bind(with(&n.ident), Some(n.ident.to_string()), place),
            syn::UseTree::Rename(r) if r.ident == "self" => {
                self.bind(before.to_vec(), Some(r.rename.to_string()), place);
            }
            syn::UseTree::Rename(r) => self.bind(with(&r.ident), Some(r.rename.to_string()), place),
        }
    }

    fn bind(&mut self, path: Vec<String>, name: Option<String>, place: Place) {
        if let Some(name) = name {
            self.bound.insert(name, path.clone());
        }
        self.name(path, place);
    }

    /// Paths in what a macro or an attribute is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(p) if p.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        let whole = std::mem::take(&mut path);
                        self.name(whole, Place::Code);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    if !path.is_empty() {
                        let whole = std::mem::take(&mut path);
                        self.name(whole, Place::Code);
                    }
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        if !path.is_empty() {
            self.name(path, Place::Code);
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test(&item.attrs) || item.content.is_none() {
            return;
        }
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let place = if matches!(item.vis, syn::Visibility::Inherited) { Place::Use } else { Place::PublicUse };
        self.open(&[], &item.tree, place);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.name(path.segments.iter().map(|s| s.ident.to_string()).collect(), Place::Code);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        visit::visit_macro(self, item);
        self.tokens(item.tokens.clone());
    }

    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        visit::visit_meta_list(self, list);
        self.tokens(list.tokens.clone());
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }
}
