import java.io.FileInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** usage: Get URL: Java's HttpClient, trusting the bundle that SSL_CERT_FILE names. */
public class Get {
  public static void main(String[] words) throws Exception {
    HttpClient client = HttpClient.newBuilder()
        .sslContext(trusting(System.getenv("SSL_CERT_FILE")))
        .connectTimeout(Duration.ofSeconds(10))
        .build();
    try {
      HttpResponse<String> response = client.send(
          HttpRequest.newBuilder(URI.create(words[0])).timeout(Duration.ofSeconds(10)).build(),
          HttpResponse.BodyHandlers.ofString());
      System.out.print(response.body());
      System.exit(response.statusCode() == 200 ? 0 : 1);
    } catch (Exception error) {
      for (Throwable cause = error; cause != null; cause = cause.getCause()) {
        System.err.println(cause);
      }
      System.exit(1);
    }
  }

  private static SSLContext trusting(String bundle) throws Exception {
    KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
    roots.load(null, null);
    try (InputStream pem = new FileInputStream(bundle)) {
      int number = 0;
      for (Certificate root : CertificateFactory.getInstance("X.509").generateCertificates(pem)) {
        roots.setCertificateEntry("root-" + number++, root);
      }
    }
    TrustManagerFactory trust =
        TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    trust.init(roots);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(null, trust.getTrustManagers(), null);
    return context;
  }
}
