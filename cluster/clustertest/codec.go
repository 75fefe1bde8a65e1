package clustertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
)

// codec stores example pods.
var codec = sync.OnceValue(func() runtime.Codec {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, add := range []func(*runtime.Scheme) error{example.AddToScheme, examplev1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return apitesting.TestCodec(serializer.NewCodecFactory(scheme), examplev1.SchemeGroupVersion)
})

// The value of a pod is in an annotation.
const annotation = "value"

func pod(key, value string) *example.Pod {
	return &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: key, Annotations: map[string]string{annotation: value}}}
}

func valueOf(c runtime.Codec, data []byte) string {
	p := &example.Pod{}
	if err := runtime.DecodeInto(c, data, p); err != nil {
		return "not a pod: " + err.Error()
	}
	return p.Annotations[annotation]
}

// authority issues the members' certificates. They are valid for a year from
// the moment it was made.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	now  time.Time
}

const validity = 365 * 24 * time.Hour

func newAuthority() *authority {
	a := &authority{now: time.Now()}
	a.key = newKey()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: a.now.Add(-time.Hour), NotAfter: a.now.Add(validity), KeyUsage: x509.KeyUsageCertSign}
	a.cert = a.sign(tmpl, tmpl, a.key)
	a.pool = x509.NewCertPool()
	a.pool.AddCert(a.cert)
	return a
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func (a *authority) sign(tmpl, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), a.key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// config is the TLS of the member with that ID.
func (a *authority) config(id string) *tls.Config {
	key := newKey()
	cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, DNSNames: []string{id, "server"},
		NotBefore: a.now.Add(-time.Hour), NotAfter: a.now.Add(validity), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}},
		RootCAs:      a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: "server", MinVersion: tls.VersionTLS13,
	}
}
