package backup

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// changedFields gives the paths at which two objects differ, sorted. Elements of
// lists are named by their name where all have one, else by their number; lists
// of different length without names are one field.
func changedFields(a, b map[string]any) (paths []string) {
	walkMap("", a, b, &paths)
	slices.Sort(paths)
	return paths
}

func walk(path string, a, b any, out *[]string) {
	switch a := a.(type) {
	case map[string]any:
		if b, ok := b.(map[string]any); ok {
			walkMap(path, a, b, out)
			return
		}
	case []any:
		if b, ok := b.([]any); ok && walkList(path, a, b, out) {
			return
		}
	}
	if !reflect.DeepEqual(a, b) {
		*out = append(*out, path)
	}
}

func walkMap(path string, a, b map[string]any, out *[]string) {
	for key := range maps.Keys(a) {
		sub := join(path, key)
		if vb, ok := b[key]; !ok {
			*out = append(*out, sub)
		} else if sub == "metadata.managedFields" { // its inside is for machines
			if !reflect.DeepEqual(a[key], vb) {
				*out = append(*out, sub)
			}
		} else {
			walk(sub, a[key], vb, out)
		}
	}
	for key := range maps.Keys(b) {
		if _, ok := a[key]; !ok {
			*out = append(*out, join(path, key))
		}
	}
}

// join puts keys that are no plain words into brackets.
func join(path, key string) string {
	switch {
	case strings.ContainsAny(key, "./[]"):
		return path + "[" + key + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

// walkList says false if the elements can't be matched.
func walkList(path string, a, b []any, out *[]string) bool {
	for _, field := range []string{"name", "type"} { // conditions have a type
		na, okA := index(a, field)
		nb, okB := index(b, field)
		if okA && okB {
			walkNamed(path, na, nb, out)
			return true
		}
	}
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		walk(fmt.Sprintf("%s[%d]", path, i), a[i], b[i], out)
	}
	return true
}

func walkNamed(path string, a, b map[string]any, out *[]string) {
	for name := range maps.Keys(a) {
		if eb, ok := b[name]; ok {
			walk(path+"["+name+"]", a[name], eb, out)
		} else {
			*out = append(*out, path+"["+name+"]")
		}
	}
	for name := range maps.Keys(b) {
		if _, ok := a[name]; !ok {
			*out = append(*out, path+"["+name+"]")
		}
	}
}

// index gives a list of objects by a field that all have, each with a value of
// its own.
func index(list []any, field string) (map[string]any, bool) {
	out := map[string]any{}
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			if name, ok := m[field].(string); ok {
				out[name] = e
			}
		}
	}
	return out, len(list) > 0 && len(out) == len(list)
}
