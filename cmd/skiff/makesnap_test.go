package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/raft"
	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// makeSnapshot is a command of scripts: makesnap FILE NAME=VALUE... saves a state
// with these ConfigMaps, and two more writes for each argument +. FILE may be a
// folder (with a slash). -z compresses, -to FILE encrypts to the keys in a file.
func makeSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: makesnap FILE NAME=VALUE...")
	}
	cmds := []fsm.Command{{Configuration: &fsm.Configuration{ClusterID: "SCRIPTCLUSTER"}}}
	var o backup.SaveOptions
	for i := 1; i < len(args); i++ {
		a := args[i]
		switch a {
		case "-z":
			o.Compress = true
			continue
		case "-to":
			i++
			to, err := backup.ReadRecipients(ts.MkAbs(args[i]))
			ts.Check(err)
			o.Encrypt = to
			continue
		case "+":
			cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: "/registry/gone", Value: []byte("x"), Expect: fsm.Any}),
				fsm.One(fsm.Op{Type: fsm.Delete, Key: "/registry/gone", Expect: fsm.Any}))
			continue
		}
		name, value, _ := strings.Cut(a, "=")
		m := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: map[string]string{"value": value}}
		var b bytes.Buffer
		ts.Check(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(m, &b))
		cmds = append(cmds, fsm.One(fsm.Op{Type: fsm.Put, Key: "/registry/configmaps/default/" + name, Value: b.Bytes()}))
	}
	entry, err := fsm.EncodeEntry(cmds...)
	ts.Check(err)
	f := fsm.New(store.New(store.Config{}))
	f.Apply(&raft.Log{Index: 5, Term: 2, Data: entry})
	source := func(ctx context.Context, w io.Writer) error { return f.Capture().Write(ctx, w) }
	path := ts.MkAbs(args[0])
	if strings.HasSuffix(args[0], "/") {
		_, _, err = backup.SaveIn(context.Background(), source, path, o)
	} else {
		_, err = backup.Save(context.Background(), source, path, o)
	}
	ts.Check(err)
}

// cutFile is a command of scripts: cut FROM TO BYTES copies the beginning of a file.
func cutFile(ts *testscript.TestScript, _ bool, args []string) {
	var n int
	if len(args) != 3 {
		ts.Fatalf("usage: cut FROM TO BYTES")
	}
	_, err := fmt.Sscan(args[2], &n)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(ts.ReadFile(args[0])[:n]), 0o600))
}
