//! [`with_dtype`]: the element type that a struct names.

/// Evaluates an expression with the type of a `dtype`; the error of a number that is none.
macro_rules! with_dtype {
    ($dtype:expr, $E:ident => $run:expr) => {
        match $dtype {
            $crate::types::KRON_F32 => {
                type $E = f32;
                $run
            }
            $crate::types::KRON_F16 => {
                type $E = half::f16;
                $run
            }
            $crate::types::KRON_BF16 => {
                type $E = half::bf16;
                $run
            }
            other => Err($crate::refuse(
                "dtype",
                format!("the value {other}"),
                "it is KRON_F32, KRON_F16 or KRON_BF16",
            )),
        }
    };
}
pub(crate) use with_dtype;
