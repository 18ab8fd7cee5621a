# SPDX-License-Identifier: GPL-2.0-only
#
# Which top-level modules of a crate use which, a pair in each line, for tsort: `x y` if something
# in x names something in y. Files are arguments, by their paths below the directory of the crate's
# root. x.rs and all below x/ are one module; lib.rs and main.rs are the module `root`, which has
# what is named right behind `crate::`. What is under #[cfg(test)] does not count, nor do comments.

# What a path begins with, or all that the branches of a tree of paths begin with.
function heads(s,    depth, i, c, wanted) {
	sub(/^ +/, "", s)
	if (substr(s, 1, 1) != "{") {
		name(s)
		return
	}
	for (i = 1; i <= length(s); i++) {
		c = substr(s, i, 1)
		if (c == "{")
			wanted = ++depth == 1
		else if (c == "}" && --depth == 0)
			return
		else if (c == ",")
			wanted = depth == 1
		else if (wanted && c != " ") {
			name(substr(s, i, 80))
			wanted = 0
		}
	}
}

function name(s) {
	if (s ~ /^self[^A-Za-z0-9_]/)
		return
	match(s, /^[A-Za-z0-9_]*/)
	s = substr(s, 1, RLENGTH)
	pair(s in modules ? s : "root")
}

function pair(used) {
	if (used == "no_debug")
		used = "debug"
	if (used != module && !((module, used) in seen)) {
		seen[module, used] = 1
		print module, used
	}
}

function scan(    s, chain, supers) {
	for (s = text; match(s, /(^|[^A-Za-z0-9_:])crate::/); ) {
		s = substr(s, RSTART + RLENGTH)
		heads(s)
	}
	# As many of them as the file is deep lead to the root.
	for (s = text; match(s, /(^|[^A-Za-z0-9_:])(super::)+/); ) {
		chain = substr(s, RSTART, RLENGTH)
		s = substr(s, RSTART + RLENGTH)
		supers = gsub(/super::/, "", chain)
		if (supers == deep)
			heads(s)
	}
	# The root names its modules without `crate::`.
	for (s = module == "root" ? text : ""; match(s, /(^|[^A-Za-z0-9_:])[a-z_0-9]+::/); ) {
		chain = substr(s, RSTART, RLENGTH)
		# What follows is not the beginning of a path.
		s = ":" substr(s, RSTART + RLENGTH)
		gsub(/[^a-z_0-9]/, "", chain)
		if (chain in modules)
			pair(chain)
	}
}

BEGIN {
	for (i = 1; i < ARGC; i++) {
		split(ARGV[i], parts, /[.\/]/)
		modules[parts[1]] = 1
	}
	delete modules["lib"]
	delete modules["main"]
	delete modules["vmbeam_main"]
}

FNR == 1 {
	scan()
	text = ""
	left_out = 0
	deep = split(FILENAME, parts, "/")
	module = parts[1]
	sub(/\.rs$/, "", module)
	deep -= parts[deep] == "mod.rs"
	if (module ~ /^(lib|main|vmbeam_main)$/) {
		module = "root"
		deep = 0
	}
	if (module == "no_debug")
		module = "debug"
}

{
	match($0, /^ */)
	indent = RLENGTH
}

# As rustfmt has it, an item ends with a line that is no further in.
left_out {
	if (indent == from && $0 !~ /^ *#/ && $0 ~ /[;}]$/)
		left_out = 0
	next
}

/^ *#\[cfg\(test\)\]/ {
	left_out = 1
	from = indent
	next
}

{
	sub(/\/\/.*/, "")
	gsub(/\t/, " ")
	text = text " " $0
}

END {
	scan()
}
