package binary

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// program gives the content of a program and what is announced of it.
func aProgram(t *testing.T, c character) ([]byte, order.Binary) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p")
	b := c.write(t, path)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content, b
}

func openStore(t *testing.T, keys ...minisign.PublicKey) *Store {
	t.Helper()
	s, err := OpenStore(StoreConfig{Dir: t.TempDir(), Keys: keys, Margin: 1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t *testing.T, key minisign.PrivateKey, content []byte) []byte {
	t.Helper()
	r := minisign.NewReader(bytes.NewReader(content))
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	return r.Sign(key)
}

func TestStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	content, b := aProgram(t, character{Version: "2.0.0", MinLevel: 1, MaxLevel: 2})
	pub, priv, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b.Signature = sign(t, priv, content)
	s := openStore(t, other, pub)
	if err := s.Add(ctx, b, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	again := bytes.NewReader(content)
	if err := s.Add(ctx, b, again); err != nil || again.Len() > 0 {
		t.Errorf("again: %v, %d bytes are not read", err, again.Len())
	}
	unsigned := b
	unsigned.Signature = nil
	if err := s.Add(ctx, unsigned, nil); !errors.Is(err, ErrUnsigned) {
		t.Errorf("again without a signature: %v", err)
	}
	f, got, err := s.Open(b.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if have, err := io.ReadAll(f); err != nil || !bytes.Equal(have, content) || got.Version != "2.0.0" || !bytes.Equal(got.Signature, b.Signature) {
		t.Errorf("%d bytes, %+v, %v", len(have), got, err)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].MaxLevel != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.Prune(b.SHA256); err != nil {
		t.Error(err)
	}
	if _, ok := s.Get(b.SHA256); !ok {
		t.Error("it was not to be removed")
	}
	if err := s.Prune(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if _, _, err := s.Open(b.SHA256); !errors.Is(err, ErrMissing) {
		t.Errorf("%v", err)
	}
}

// What is wrong with a binary is said, and nothing of it is kept.
func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	pub, priv, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	good, announced := aProgram(t, character{Version: "2.0.0", MinLevel: 1, MaxLevel: 2})
	arm := slices.Clone(good)
	arm[18] = 183 // e_machine
	of := func(content []byte) ([]byte, order.Binary) {
		b := announced
		path := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(path, content, 0o700); err != nil {
			t.Fatal(err)
		}
		if b.SHA256, err = Sum(path); err != nil {
			t.Fatal(err)
		}
		b.Size = int64(len(content))
		return content, b
	}
	with := func(change func(*order.Binary)) func() ([]byte, order.Binary) {
		return func() ([]byte, order.Binary) {
			b := announced
			change(&b)
			return good, b
		}
	}
	says := func(c character) func() ([]byte, order.Binary) {
		return func() ([]byte, order.Binary) { return aProgram(t, c) }
	}
	for _, c := range []struct {
		name  string
		given func() ([]byte, order.Binary)
		key   *minisign.PrivateKey // nil: no keys
		sign  func(content []byte) []byte
		want  error
		text  string
	}{
		{name: "other content", given: func() ([]byte, order.Binary) { c := slices.Clone(good); c[len(c)/2]++; return c, announced }, want: ErrContent, text: "SHA-256"},
		{name: "too long", given: func() ([]byte, order.Binary) { return append(slices.Clone(good), 1), announced }, want: ErrContent, text: "longer"},
		{name: "no hash", given: with(func(b *order.Binary) { b.SHA256 = "../../etc/passwd" }), text: "64 digits"},
		{name: "no size", given: with(func(b *order.Binary) { b.Size = 0 }), text: "size 0"},
		{name: "other platform", given: with(func(b *order.Binary) { b.Platform = "linux/arm64" }), want: ErrNoProgram, text: "this host is"},
		{name: "other platform inside", given: func() ([]byte, order.Binary) { return of(arm) }, want: ErrNoProgram, text: "it is for linux/arm64, this host is linux/amd64"},
		{name: "text", given: func() ([]byte, order.Binary) { return of([]byte("#!/bin/sh\necho hello\n")) }, want: ErrNoProgram, text: "no program"},
		{name: "half a program", given: func() ([]byte, order.Binary) { return of(good[:len(good)/2]) }, want: ErrNoProgram, text: "cut short"},
		{name: "the head of a program", given: func() ([]byte, order.Binary) { return of(good[:100]) }, want: ErrNoProgram, text: "cut short"},
		{name: "other version", given: with(func(b *order.Binary) { b.Version = "3.0.0" }), want: ErrNoProgram, text: "its version is 2.0.0, announced was 3.0.0"},
		{name: "other level", given: with(func(b *order.Binary) { b.MaxLevel = 3 }), want: ErrNoProgram, text: "highest feature level is 2"},
		{name: "does not run", given: says(character{Version: "2.0.0", Mode: "breaks"}), want: ErrNoProgram, text: "cannot work here"},
		{name: "lies", given: says(character{Version: "2.0.0", Mode: "lies"}), want: ErrNoProgram, text: "2.0.0-or-so"},
		{name: "unsigned", given: with(func(*order.Binary) {}), key: &priv, want: ErrUnsigned, text: "a signature of key"},
		{name: "signed by another", given: with(func(*order.Binary) {}), key: &priv, sign: func(c []byte) []byte { return sign(t, stranger, c) }, want: ErrSignature, text: "it is of key"},
		{name: "signature of other content", given: with(func(*order.Binary) {}), key: &priv, sign: func(c []byte) []byte { return sign(t, priv, c[1:]) }, want: ErrSignature, text: "changed"},
		{name: "signature of the old kind", given: with(func(*order.Binary) {}), key: &priv, sign: func(c []byte) []byte { return minisign.Sign(priv, c) }, want: ErrSignature, text: "minisign -H"},
		{name: "no signature at all", given: with(func(*order.Binary) {}), key: &priv, sign: func([]byte) []byte { return []byte("yes, it is mine") }, want: ErrSignature, text: "no signature of minisign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			content, b := c.given()
			s := openStore(t)
			if c.key != nil {
				s.keys = Keys{pub}
			}
			if c.sign != nil {
				b.Signature = c.sign(content)
			}
			err := s.Add(t.Context(), b, bytes.NewReader(content))
			if err == nil || !strings.Contains(err.Error(), c.text) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(s.dir); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A program that does not answer is not waited for for ever.
func TestProgramHangs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "p")
	character{Version: "2.0.0", Mode: "hangs"}.write(t, path)
	why := errors.New("that is enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	go cancel(why)
	if _, err := Describe(ctx, path); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "p")
	want := character{Version: "2.0.0", MinLevel: 1, MaxLevel: 2}.write(t, path)
	got, err := Describe(t.Context(), path)
	if err != nil || got.SHA256 != want.SHA256 || got.Size != want.Size || got.Version != "2.0.0" || got.Platform != Platform || got.MaxLevel != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Describe(t.Context(), t.TempDir()); !errors.Is(err, ErrNoProgram) {
		t.Errorf("a folder: %v", err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Describe(t.Context(), text); !errors.Is(err, ErrNoProgram) || !strings.Contains(err.Error(), text) {
		t.Errorf("an empty file: %v", err)
	}
}

// What came is not asked for again.
func TestAddFrom(t *testing.T) {
	t.Parallel()
	content, b := aProgram(t, character{Version: "2.0.0"})
	s := openStore(t)
	var offsets []int64
	cut := int64(100_000)
	from := func(_ context.Context, offset int64) (io.ReadCloser, error) {
		offsets = append(offsets, offset)
		end := min(int64(len(content)), offset+cut)
		cut *= 20
		return io.NopCloser(bytes.NewReader(content[offset:end])), nil
	}
	for len(offsets) < 10 {
		err := s.AddFrom(t.Context(), b, from)
		if err == nil {
			break
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	}
	if _, ok := s.Get(b.SHA256); !ok || !slices.Equal(offsets, []int64{0, 100_000, 2_100_000}) {
		t.Errorf("%v, asked from %v", ok, offsets)
	}
	// What is left of a binary that grew too long, or is another's, is begun anew.
	s = openStore(t)
	if err := os.WriteFile(s.partial(b.SHA256), append(slices.Clone(content), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	cut = b.Size
	if err := s.AddFrom(t.Context(), b, from); err != nil {
		t.Error(err)
	}
	s = openStore(t)
	if err := os.WriteFile(s.partial(b.SHA256), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.AddFrom(t.Context(), b, from); !errors.Is(err, ErrContent) {
		t.Errorf("%v", err)
	}
	if err := s.AddFrom(t.Context(), b, from); err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestNoRoom(t *testing.T) {
	t.Parallel()
	content, b := aProgram(t, character{Version: "2.0.0"})
	s := openStore(t)
	s.margin = 1 << 60
	if err := s.Add(t.Context(), b, bytes.NewReader(content)); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), s.dir) {
		t.Errorf("%v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root")
	}
	if err := unix.Mount("small", s.dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.dir, unix.MNT_DETACH) })
	s.margin = -1 << 30 // the disk fills up while it comes
	if err := s.Add(t.Context(), b, bytes.NewReader(content)); !errors.Is(err, ErrNoRoom) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A server starts on a disk that takes nothing more, also when it never had a
// store.
func TestFullFromTheBeginning(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "nr_inodes=1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := OpenStore(StoreConfig{Dir: filepath.Join(dir, "upgrade")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Store: s, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Error(err)
	}
	content, b := aProgram(t, character{Version: "2.0.0"})
	if err := s.Add(t.Context(), b, bytes.NewReader(content)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestParseKeys(t *testing.T) {
	t.Parallel()
	pub, _, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := pub.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{pub.String(), string(file), "# ours\n" + string(file) + "\n\n"} {
		if k, err := ParseKeys(text); err != nil || len(k) != 1 || !k[0].Equal(pub) {
			t.Errorf("%q: %v, %v", text, k, err)
		}
	}
	if k, err := ParseKeys(string(file) + "\n" + pub.String()); err != nil || len(k) != 2 {
		t.Errorf("%v, %v", k, err)
	}
	if k, err := ParseKeys("\n"); err != nil || len(k) != 0 {
		t.Errorf("%v, %v", k, err)
	}
	if _, err := ParseKeys(pub.String() + "\nnot a key"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
}
