//! Branches and turns of loops that uniforms alone decide: drivers take those words for constants, and compile the
//! kernel again at each dispatch where they changed (Mesa 22.3's lavapipe: seconds). What else decides, if only
//! `opaque_zero` of the prelude, keeps them from it. Not looked into: variables with several values other than
//! counters of loops, and loops that a driver unrolls.

use std::collections::HashMap;

use naga::{AddressSpace, Block, Expression, Function, Handle, LocalVariable, Module, Statement};

/// What a value is made of, the strongest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    Constant,
    Uniform,
    Other,
}

type Calls<'m> = HashMap<Handle<Expression>, (Handle<Function>, &'m [Handle<Expression>])>;
type Stores = HashMap<Handle<LocalVariable>, Vec<Handle<Expression>>>;

/// One function with the arguments of a call.
struct Walk<'m> {
    module: &'m Module,
    function: &'m Function,
    arguments: Vec<Source>,
    calls: Calls<'m>,
    stores: Stores,
}

/// The functions of a module with such branches, and the conditions.
pub fn decided_by_uniforms(module: &Module) -> Vec<String> {
    let mut found = Vec::new();
    for entry in &module.entry_points {
        let arguments = vec![Source::Other; entry.function.arguments.len()];
        Walk::new(module, &entry.function, arguments).conditions(&mut found);
    }
    found.sort();
    found.dedup();
    found
}

impl<'m> Walk<'m> {
    fn new(module: &'m Module, function: &'m Function, arguments: Vec<Source>) -> Self {
        let (mut calls, mut stores) = (Calls::new(), Stores::new());
        each(&function.body, &mut |statement| match statement {
            Statement::Call { function, arguments, result: Some(result) } => {
                calls.insert(*result, (*function, arguments));
            }
            Statement::Store { pointer, value } => {
                let mut at = *pointer;
                while let Expression::Access { base, .. } | Expression::AccessIndex { base, .. } =
                    function.expressions[at]
                {
                    at = base;
                }
                if let Expression::LocalVariable(variable) = function.expressions[at] {
                    stores.entry(variable).or_default().push(*value);
                }
            }
            _ => {}
        });
        Self { module, function, arguments, calls, stores }
    }

    fn called(
        &self,
        function: Handle<Function>,
        arguments: &[Handle<Expression>],
        open: &[Handle<LocalVariable>],
    ) -> Self {
        let arguments = arguments.iter().map(|a| self.source_with(*a, open)).collect();
        Walk::new(self.module, &self.module.functions[function], arguments)
    }

    fn conditions(&self, found: &mut Vec<String>) {
        each(&self.function.body, &mut |statement| {
            let (condition, source) = match statement {
                Statement::If { condition, accept, reject } => {
                    let ends = [accept, reject].iter().any(|b| matches!(b[..], [Statement::Break]));
                    let source = if ends { self.end(*condition) } else { self.source(*condition) };
                    (*condition, source)
                }
                Statement::Switch { selector, .. } => (*selector, self.source(*selector)),
                Statement::Loop { break_if: Some(end), .. } => (*end, self.end(*end)),
                Statement::Call { function, arguments, .. } => {
                    return self.called(*function, arguments, &[]).conditions(found);
                }
                _ => return,
            };
            if source == Source::Uniform {
                let name = self.function.name.as_deref().unwrap_or("?");
                found.push(format!("{name}: {:?}", self.function.expressions[condition]));
            }
        });
    }

    /// That of a loop's end, together with where its counter begins and what its steps are.
    fn end(&self, condition: Handle<Expression>) -> Source {
        let side = |side: Handle<Expression>| match self.function.expressions[side] {
            Expression::Load { pointer } => match self.function.expressions[pointer] {
                Expression::LocalVariable(counter) => self.variable(counter),
                _ => self.source(side),
            },
            _ => self.source(side),
        };
        match self.function.expressions[condition] {
            Expression::Binary { left, right, .. } => side(left).max(side(right)),
            _ => self.source(condition),
        }
    }

    /// All that is put into a variable, but for what it holds itself.
    fn variable(&self, variable: Handle<LocalVariable>) -> Source {
        let values = self.values(variable);
        let source = |value: &Handle<Expression>| self.source_with(*value, &[variable]);
        values.iter().map(source).max().unwrap_or(Source::Constant)
    }

    fn values(&self, variable: Handle<LocalVariable>) -> Vec<Handle<Expression>> {
        let first = self.function.local_variables[variable].init;
        self.stores.get(&variable).into_iter().flatten().copied().chain(first).collect()
    }

    fn source(&self, expression: Handle<Expression>) -> Source {
        self.source_with(expression, &[])
    }

    /// Variables that are being looked into count as constants.
    fn source_with(
        &self,
        expression: Handle<Expression>,
        open: &[Handle<LocalVariable>],
    ) -> Source {
        let all = |parts: &[Handle<Expression>]| {
            parts.iter().map(|p| self.source_with(*p, open)).max().unwrap_or(Source::Constant)
        };
        match &self.function.expressions[expression] {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_) => Source::Constant,
            Expression::Compose { components, .. } => all(components),
            Expression::Access { base, index } => all(&[*base, *index]),
            Expression::AccessIndex { base: value, .. }
            | Expression::Splat { value, .. }
            | Expression::Swizzle { vector: value, .. }
            | Expression::Unary { expr: value, .. }
            | Expression::As { expr: value, .. }
            | Expression::Relational { argument: value, .. }
            | Expression::Load { pointer: value } => all(&[*value]),
            Expression::Binary { left, right, .. } => all(&[*left, *right]),
            Expression::Select { condition, accept, reject } => {
                all(&[*condition, *accept, *reject])
            }
            Expression::Math { arg, arg1, arg2, arg3, .. } => {
                let parts: Vec<_> =
                    [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten().collect();
                all(&parts)
            }
            Expression::FunctionArgument(i) => self.arguments[*i as usize],
            Expression::GlobalVariable(variable) => {
                match self.module.global_variables[*variable].space {
                    AddressSpace::Uniform => Source::Uniform,
                    _ => Source::Other,
                }
            }
            Expression::LocalVariable(variable) if open.contains(variable) => Source::Constant,
            // Of more values, which one depends on the way there.
            Expression::LocalVariable(variable) => match self.values(*variable)[..] {
                [value] => self.source_with(value, &[open, &[*variable]].concat()),
                _ => Source::Other,
            },
            Expression::CallResult(_) => {
                let (function, arguments) = self.calls[&expression];
                self.called(function, arguments, open).result()
            }
            _ => Source::Other,
        }
    }

    /// What the function returns.
    fn result(&self) -> Source {
        let mut source = Source::Constant;
        each(&self.function.body, &mut |statement| {
            if let Statement::Return { value: Some(value) } = statement {
                source = source.max(self.source(*value));
            }
        });
        source
    }
}

/// Every statement, those within others too.
fn each<'b>(block: &'b Block, visit: &mut dyn FnMut(&'b Statement)) {
    for statement in block {
        visit(statement);
        match statement {
            Statement::Block(block) => each(block, visit),
            Statement::If { accept, reject, .. } => {
                each(accept, visit);
                each(reject, visit);
            }
            Statement::Switch { cases, .. } => cases.iter().for_each(|c| each(&c.body, visit)),
            Statement::Loop { body, continuing, .. } => {
                each(body, visit);
                each(continuing, visit);
            }
            _ => {}
        }
    }
}
