# What happens to one row of ../data/invoices.csv. Money is counted in cents.

charge() { # the result goes to descriptor 4
    field invoice && field country && field iban && field currency && string customer
    number quantity && number unit_cents && number vat_percent && number instalments
    net=$((quantity * unit_cents))
    tax=$(((net * vat_percent + 50) / 100))
    total=$((net + tax))
    first=$((total - total / instalments * (instalments - 1)))
    ok=true risk=0
    iban_ok "$iban" || { ok=false && risk=60; }
    case $iban in "$country"*) ;; *) risk=$((risk + 20)) ;; esac
    [ $total -lt 1000000 ] || risk=$((risk + 15))
    printf '{"invoice":"%s","customer":"%s","tax_cents":%d,"total_cents":%d,' \
        "$invoice" "$customer" $tax $total >&4
    printf '"total":"%s","first_instalment_cents":%d,"iban_ok":%s,"risk":%d,"pid":%d}' \
        "$(money $total "$currency")" $first $ok $risk $$ >&4
}

iban_ok() { # mod 97, character by character: the whole number would not fit
    chars=${1#????}${1%"${1#????}"} mod=0
    while [ -n "$chars" ]; do
        char=${chars%"${chars#?}"} chars=${chars#?}
        case $char in
            [0-9]) mod=$(((mod * 10 + char) % 97)) ;;
            *)
                before=ABCDEFGHIJKLMNOPQRSTUVWXYZ before=${before%%"$char"*}
                mod=$(((mod * 100 + 10 + ${#before}) % 97))
                ;;
        esac
    done
    [ "$mod" -eq 1 ]
}

money() { # cents, currency
    whole=$(($1 / 100)) thousands=
    while [ ${#whole} -gt 3 ]; do
        thousands=,${whole#"${whole%???}"}$thousands whole=${whole%???}
    done
    printf '%s%s.%02d %s' "$whole" "$thousands" $(($1 % 100)) "$2"
}
